"""Data of the task `shapes`: generated drawings of discs and crosses."""

import numpy as np
import pandas as pd

from mlagent_jax.env.task import PreparedData, split_rows

NUM_TRAIN = 600
NUM_ROWS = 2_200
SIZE = 9


def prepare(rng: np.random.Generator) -> PreparedData:
    """Returns pictures of one shape of any size and place, with noise."""
    n = NUM_ROWS
    y, x = np.mgrid[:SIZE, :SIZE]
    dy = np.abs(y - rng.uniform(3, 5, (n, 1, 1)))
    dx = np.abs(x - rng.uniform(3, 5, (n, 1, 1)))
    radius = rng.uniform(2.0, 3.5, (n, 1, 1))
    ring = np.abs(np.hypot(dy, dx) - radius) < 0.8
    cross = (np.minimum(dy, dx) < 0.8) & (np.maximum(dy, dx) < radius + 0.5)
    is_cross = rng.integers(0, 2, n)
    shape = np.where(is_cross[:, None, None] == 1, cross, ring)
    ink = rng.uniform(8, 16, (n, 1, 1))
    images = ink * shape + rng.normal(0, 6.0, (n, SIZE, SIZE))
    pixels = np.clip(np.round(20 + images), 0, 60).astype(int)
    columns = [f"p{i}" for i in range(SIZE * SIZE)]
    table = pd.DataFrame(pixels.reshape(n, -1), columns=columns)
    table.insert(0, "is_cross", is_cross)
    return split_rows(table, NUM_TRAIN)
