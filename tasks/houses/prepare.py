"""Data of the task `houses`: generated sales of houses in a made-up town."""

import numpy as np
import pandas as pd

from mlagent_jax.env.task import PreparedData, split_rows

NUM_TRAIN = 500
NUM_ROWS = 1_900
HOODS = ("harbor", "hill", "mill", "park", "station")
HOOD_LEVEL = (0.05, 0.45, -0.25, 0.30, -0.10)


def prepare(rng: np.random.Generator) -> PreparedData:
    """Returns sales whose log price is additive with a few interactions."""
    n = NUM_ROWS
    area = rng.gamma(9.0, 14.0, n) + 30.0
    rooms = np.clip(np.round(area / 28 + rng.normal(0, 1.0, n)), 1, 10)
    lot = area * rng.lognormal(1.0, 0.5, n)
    year = rng.integers(1900, 2015, n)
    quality = np.clip(np.round(rng.normal(5.5 + (year - 1960) / 40, 1.5, n)), 1, 10)
    baths = np.clip(np.round(rooms / 3 + rng.normal(0, 0.5, n)), 1, 4)
    distance = rng.gamma(2.0, 2.5, n)
    garage = rng.integers(0, 4, n)
    hood = rng.integers(0, len(HOODS), n)
    log_price = (
        1.2
        + 0.55 * np.log(area)
        + 0.10 * np.log(lot)
        + 0.085 * quality
        + 0.04 * baths
        + 0.05 * garage
        + np.asarray(HOOD_LEVEL)[hood]
        - 0.03 * distance * (1 + (hood == 1))
        + 0.25 * np.clip((year - 1980) / 35, 0, 1)
        + 0.15 * np.clip((1930 - year) / 30, 0, 1) * (quality > 5)
        + rng.normal(0, 0.07, n)
    )
    table = pd.DataFrame(
        {
            "price": np.exp(log_price).round(1),
            "lot": lot.round(0).astype(int),
            "rooms": rooms.astype(int),
            "hood": np.asarray(HOODS)[hood],
            "area": area.round(1),
            "garage": garage,
            "baths": baths.astype(int),
            "distance": distance.round(2),
            "year": year,
            "quality": quality.astype(int),
        }
    )
    return split_rows(table, NUM_TRAIN)
