"""Data of the task `leaves`: generated photographs of healthy and sick leaves."""

import numpy as np
import pandas as pd

from mlagent_jax.env.task import PreparedData, split_rows

NUM_TRAIN = 600
NUM_ROWS = 2_400
SIZE = 5
STATES = ("healthy", "multiple", "rust", "scab")
FREQUENCIES = (0.3, 0.15, 0.3, 0.25)


def prepare(rng: np.random.Generator) -> PreparedData:
    """Returns red, green and blue pixels; rust is orange, scab dark, both random."""
    n = NUM_ROWS
    state = rng.choice(len(STATES), n, p=FREQUENCIES)
    light = rng.normal(0, 5.0, (n, 1, 1, 1))
    leaf = np.array([60.0, 110.0, 50.0]) + rng.normal(0, 6.0, (n, 1, 1, 3))
    images = leaf + light + rng.normal(0, 9.0, (n, SIZE, SIZE, 3))
    for i in range(n):
        for sick, color in ((2, (45.0, -20.0, -15.0)), (3, (-25.0, -40.0, -20.0))):
            if state[i] in {1, sick}:
                num_spots = rng.integers(3, 6)
                rows, cols = rng.integers(0, SIZE, (2, num_spots))
                images[i, rows, cols] += np.array(color)
    pixels = np.clip(np.round(images), 0, 255).astype(int)
    columns = [f"{c}{i}" for i in range(SIZE * SIZE) for c in "rgb"]
    table = pd.DataFrame(pixels.reshape(n, -1), columns=columns)
    for number, name in reversed(list(enumerate(STATES))):
        table.insert(0, name, (state == number).astype(int))
    return split_rows(table, NUM_TRAIN)
