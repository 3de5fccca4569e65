"""Data of the task `whales`: generated fluke patterns of two dozen known whales."""

import numpy as np
import pandas as pd

from mlagent_jax.env.task import PreparedData, split_rows

NUM_TRAIN = 450
NUM_ROWS = 1_800
NUM_WHALES = 24
WIDTH, HEIGHT = 8, 5


def prepare(rng: np.random.Generator) -> PreparedData:
    """Returns pictures of flukes in changing light; a few whales are seen often."""
    n = NUM_ROWS
    weights = 1 / np.arange(4, NUM_WHALES + 4)
    whale = rng.choice(NUM_WHALES, n, p=weights / weights.sum())
    patterns = rng.normal(0, 14, (NUM_WHALES, WIDTH * HEIGHT))
    contrast = rng.lognormal(0, 0.35, (n, 1))
    light = rng.normal(0, 15, (n, 1))
    pixels = 128 + light + contrast * patterns[whale]
    pixels = pixels + rng.normal(0, 9, pixels.shape)
    columns = [f"p{i}" for i in range(WIDTH * HEIGHT)]
    values = np.clip(np.round(pixels), 0, 255).astype(int)
    table = pd.DataFrame(values, columns=columns)
    table.insert(0, "whale", [f"w{number:02d}" for number in whale])
    return split_rows(table, NUM_TRAIN)
