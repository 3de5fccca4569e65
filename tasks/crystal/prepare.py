"""Data of the task `crystal`: generated oxides with two measured energies."""

import numpy as np
import pandas as pd

from mlagent_jax.env.task import PreparedData, split_rows

NUM_TRAIN = 500
NUM_ROWS = 2_000
GROUPS = (12, 33, 167, 194, 206, 227)
GROUP_ENERGY = (0.00, 0.05, 0.02, 0.10, 0.04, 0.16)


def prepare(rng: np.random.Generator) -> PreparedData:
    """Returns compounds of three metals; both energies are curved in their shares."""
    n = NUM_ROWS
    shares = rng.dirichlet([1.2, 1.2, 1.2], n)
    al, ga, indium = shares.T
    group = rng.integers(0, len(GROUPS), n)
    atoms = rng.choice([10, 20, 40, 80], n, p=[0.1, 0.2, 0.3, 0.4])
    volume = atoms * (8.5 + 2.2 * ga + 5.0 * indium + rng.normal(0, 0.25, n))
    ratio = rng.lognormal(0, 0.35, (2, n))
    a = (volume * ratio[0] * ratio[1]) ** (1 / 3)
    b, c = a / ratio[0], a / ratio[1]
    angle = 90 + rng.normal(0, 6, n) + 20 * (group >= 3)
    formation = (
        0.04
        + np.asarray(GROUP_ENERGY)[group]
        + 0.45 * al * indium
        + 0.20 * ga * indium
        + 0.06 * (angle > 105)
        + 0.3 * np.asarray(GROUP_ENERGY)[group] * al
    ) * rng.lognormal(0, 0.10, n)
    gap = (
        0.6
        + 4.2 * al**1.3
        + 2.2 * ga * (1 - 0.5 * indium)
        - 0.8 * al * indium
        + 0.3 * np.asarray(GROUP_ENERGY)[group] * 10 * ga
    ) * rng.lognormal(0, 0.05, n)
    table = pd.DataFrame(
        {
            "formation": formation.round(4),
            "bandgap": gap.round(4),
            "al": al.round(3),
            "group": np.asarray(GROUPS)[group],
            "atoms": atoms,
            "indium": indium.round(3),
            "a": a.round(3),
            "b": b.round(3),
            "angle": angle.round(2),
            "c": c.round(3),
            "ga": ga.round(3),
        }
    )
    return split_rows(table, NUM_TRAIN)
