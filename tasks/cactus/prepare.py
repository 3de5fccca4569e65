"""Data of the task `cactus`: generated aerial pictures, half of them with a cactus."""

import numpy as np
import pandas as pd

from mlagent_jax.env.task import PreparedData, split_rows

NUM_TRAIN = 600
NUM_ROWS = 2_200
SIZE = 8


def prepare(rng: np.random.Generator) -> PreparedData:
    """Returns noisy ground; a cactus is a dark trunk with one arm, at any place."""
    n = NUM_ROWS
    y, x = np.mgrid[:SIZE, :SIZE]
    slope = rng.normal(0, 1.0, (n, 2, 1, 1))
    images = 0.4 * (slope[:, 0] * (y - 3.5) + slope[:, 1] * (x - 3.5))
    images = images + rng.normal(0, 3.0, (n, SIZE, SIZE))
    # Bare stones: dark dots that a cactus is easily mistaken for.
    for _ in range(2):
        rows, cols = rng.integers(0, SIZE, (2, n))
        images[np.arange(n), rows, cols] -= 7.0
    has_cactus = rng.integers(0, 2, n)
    for i in np.flatnonzero(has_cactus):
        trunk, top = rng.integers(1, SIZE - 1), rng.integers(0, 4)
        images[i, top : top + 5, trunk] -= 7.0
        arm = trunk + rng.choice([-1, 1])
        images[i, top + 1 : top + 3, arm] -= 6.0
    pixels = np.clip(np.round(40 + 2 * images), 0, 99).astype(int)
    columns = [f"p{i}" for i in range(SIZE * SIZE)]
    table = pd.DataFrame(pixels.reshape(n, -1), columns=columns)
    table.insert(0, "has_cactus", has_cactus)
    return split_rows(table, NUM_TRAIN)
