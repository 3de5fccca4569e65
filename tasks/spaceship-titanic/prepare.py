"""Data of `spaceship-titanic`: Kaggle's passenger list, or one made up like it."""

from pathlib import Path

import numpy as np
import pandas as pd

from mlagent_jax.env.archive import find_file
from mlagent_jax.env.task_data import PreparedFiles, Source, csv_bytes, hold_out

TEST_FRAC = {"real": 0.1, "lookalike": 0.75}
NUM_PASSENGERS = 2_460
PLANETS = ("Earth", "Europa", "Mars")
PLANET_LEVEL = (-0.5, 0.9, 0.0)
DECKS = tuple("ABCDEFG")
DECK_LEVEL = (0.2, 0.9, 0.7, -0.1, -0.5, 0.0, 0.3)
DESTINATIONS = ("TRAPPIST-1e", "55 Cancri e", "PSO J318.5-22")
SERVICES = ("RoomService", "FoodCourt", "ShoppingMall", "Spa", "VRDeck")
SERVICE_EFFECT = (-0.45, 0.30, 0.15, -0.45, -0.45)
FIRST_NAMES = (
    "Ada",
    "Brin",
    "Cole",
    "Dara",
    "Edu",
    "Fenn",
    "Gia",
    "Hale",
    "Ivo",
    "Jun",
)
LAST_NAMES = ("Arkwood", "Bellis", "Cordane", "Dresk", "Elmere", "Fallow", "Grint")
GAP_FRAC = 0.022


def write_archive(raw: Path, rng: np.random.Generator) -> None:
    """Writes train.csv, test.csv and sample_submission.csv as Kaggle has them.

    Passengers travel in groups of one to five that share planet, deck and family.
    """
    sizes = rng.choice(5, NUM_PASSENGERS, p=[0.6, 0.2, 0.1, 0.06, 0.04]) + 1
    group = np.repeat(np.arange(len(sizes)), sizes)[:NUM_PASSENGERS]
    number = pd.Series(group).groupby(group).cumcount().to_numpy() + 1
    planet = rng.choice(3, len(sizes), p=[0.54, 0.25, 0.21])[group]
    deck = rng.choice(7, len(sizes), p=[0.03, 0.1, 0.1, 0.06, 0.1, 0.31, 0.3])[group]
    side = rng.integers(0, 2, len(sizes))[group]
    cabin_number = rng.integers(0, 1_900, len(sizes))[group]
    family = rng.integers(0, len(LAST_NAMES), len(sizes))[group]
    n = len(group)
    age = np.clip(rng.gamma(4.0, 7.2, n), 0, 79).round()
    asleep = rng.random(n) < 0.36
    bills = rng.lognormal(4.5, 1.7, (n, 5)).round() * (rng.random((n, 5)) < 0.6)
    bills[asleep | (age < 13)] = 0
    effect = (
        1.3 * asleep
        + np.asarray(PLANET_LEVEL)[planet] * (1 + asleep)
        + np.asarray(DECK_LEVEL)[deck]
        + 0.4 * side
        + 0.6 * (age < 13)
        + np.log1p(bills) @ np.asarray(SERVICE_EFFECT)
        + rng.logistic(0, 0.5, n)
    )
    cabins = [
        f"{DECKS[d]}/{c}/{'PS'[s]}"
        for d, c, s in zip(deck, cabin_number, side, strict=True)
    ]
    first = np.asarray(FIRST_NAMES)[rng.integers(0, len(FIRST_NAMES), n)]
    features = {
        "HomePlanet": np.asarray(PLANETS)[planet],
        "CryoSleep": asleep,
        "Cabin": cabins,
        "Destination": rng.choice(DESTINATIONS, n, p=[0.69, 0.21, 0.1]),
        "Age": age,
        "VIP": rng.random(n) < 0.023,
        **dict(zip(SERVICES, bills.T, strict=True)),
        "Name": [f"{a} {LAST_NAMES[f]}" for a, f in zip(first, family, strict=True)],
    }
    table = pd.DataFrame(features).astype(object)
    table = table.mask(rng.random(table.shape) < GAP_FRAC)
    ids = [f"{g + 1:04}_{m:02}" for g, m in zip(group, number, strict=True)]
    table.insert(0, "PassengerId", ids)
    table["Transported"] = effect > np.median(effect)
    # Kaggle's own test rows have no labels; nothing is made from them.
    labelled, others = table.head(n - 60), table.tail(60)
    labelled.to_csv(raw / "train.csv", index=False)
    others.drop(columns="Transported").to_csv(raw / "test.csv", index=False)
    sample = others[["PassengerId"]].assign(Transported=False)
    sample.to_csv(raw / "sample_submission.csv", index=False)


def from_archive(raw: Path, source: Source, rng: np.random.Generator) -> PreparedFiles:
    """Returns Kaggle's training rows, split anew as MLE-bench does."""
    del rng  # Ids and order are Kaggle's and tell nothing about the labels.
    table = pd.read_csv(find_file(raw, "train.csv"))
    train, test = hold_out(table, TEST_FRAC[source])
    return PreparedFiles(
        public={
            "train.csv": csv_bytes(train),
            "test.csv": csv_bytes(test.drop(columns="Transported")),
        },
        labels=test.filter(["PassengerId", "Transported"]),
        num_train=len(train),
    )
