"""Data of the task `ship`: a generated passenger list with gaps."""

import numpy as np
import pandas as pd

from mlagent_jax.env.task import PreparedData, split_rows

NUM_TRAIN = 700
NUM_ROWS = 3_000
PORTS = ("Earth", "Luna", "Mars")
PORT_LEVEL = (-0.9, 0.3, 1.2)
DECKS = ("A", "B", "C", "D", "E")
DECK_LEVEL = (0.8, 1.0, 0.2, -0.6, -1.0)
GAP_FRAC = 0.06


def prepare(rng: np.random.Generator) -> PreparedData:
    """Returns passengers; who slept spent nothing, and most of those are missing."""
    n = NUM_ROWS
    port = rng.choice(len(PORTS), n, p=[0.5, 0.2, 0.3])
    deck = rng.integers(0, len(DECKS), n)
    asleep = rng.random(n) < 0.35
    age = np.clip(rng.gamma(4.0, 7.5, n), 0, 80)
    bills = rng.lognormal(4.5, 1.6, (n, 4)) * (rng.random((n, 4)) < 0.7)
    bills[asleep | (age < 12)] = 0
    spa, shop, food, room = bills.T
    effect = (
        1.8 * asleep
        + np.asarray(PORT_LEVEL)[port]
        + np.asarray(DECK_LEVEL)[deck] * (1 + asleep)
        - 0.45 * np.log1p(spa)
        - 0.40 * np.log1p(room)
        + 0.50 * np.log1p(food)
        + 0.15 * np.log1p(shop)
        + 1.0 * (age < 12)
        + rng.logistic(0, 0.3, n)
    )
    table = pd.DataFrame(
        {
            "spa": spa.round(0),
            "asleep": np.where(asleep, "yes", "no"),
            "age": age.round(0),
            "food": food.round(0),
            "port": np.asarray(PORTS)[port],
            "shop": shop.round(0),
            "room": room.round(0),
            "deck": np.asarray(DECKS)[deck],
            "cabin": rng.integers(1, 900, n).astype(float),
        }
    )
    table = table.mask(rng.random(table.shape) < GAP_FRAC)
    table.insert(0, "missing", effect > np.median(effect))
    return split_rows(table, NUM_TRAIN)
