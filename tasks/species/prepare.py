"""Data of the task `species`: generated outlines of leaves of eight trees."""

import numpy as np
import pandas as pd

from mlagent_jax.env.task import PreparedData, split_rows

NUM_TRAIN = 400
NUM_ROWS = 1_800
NUM_ANGLES = 32
SPECIES = ("acer", "alnus", "betula", "castanea", "ilex", "quercus", "salix", "tilia")


def prepare(rng: np.random.Generator) -> PreparedData:
    """Returns radii around a leaf's centre; each tree has its own lobes."""
    n = NUM_ROWS
    species = rng.integers(0, len(SPECIES), n)
    angle = 2 * np.pi * np.arange(NUM_ANGLES) / NUM_ANGLES
    orders = np.arange(1, 6)[:, None]
    amplitude = rng.normal(0, 0.10, (len(SPECIES), 5, 1)) / np.sqrt(orders)
    phase = rng.uniform(0, 2 * np.pi, (len(SPECIES), 5, 1))
    outline = 1 + (amplitude * np.cos(orders * angle + phase)).sum(axis=1)
    turn = rng.normal(0, 0.25, n)
    radii = np.stack(
        [
            np.interp(angle + turn[i], angle, outline[species[i]], period=2 * np.pi)
            for i in range(n)
        ]
    )
    size = rng.lognormal(3.0, 0.25, (n, 1))
    radii = size * (radii + rng.normal(0, 0.06, radii.shape))
    columns = [f"r{i}" for i in range(NUM_ANGLES)]
    table = pd.DataFrame(radii.round(1), columns=columns)
    names = np.asarray(SPECIES)[species]
    table.insert(0, "species", names)
    for name in SPECIES:
        table[name] = (names == name).astype(int)
    # The agent sees names, but predicts one probability a name.
    data = split_rows(table, NUM_TRAIN)
    return PreparedData(
        train=data.train.drop(columns=list(SPECIES)),
        test=data.test.drop(columns="species"),
    )
