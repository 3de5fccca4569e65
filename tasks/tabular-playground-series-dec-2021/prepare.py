"""Data of `tabular-playground-series-dec-2021`: forest cover types, 54 columns."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlagent_jax.env.archive import find_file
from mlagent_jax.env.task_data import PreparedFiles, Source, csv_bytes, hold_out

Array = npt.NDArray[Any]

TEST_FRAC = {"real": 0.1, "lookalike": 0.6}

NUM_ROWS = 5_000
NUM_SOILS = 40
# Two soil types never occur in the original either.
EMPTY_SOILS = (7, 15)
# Shares of classes 1, 2, 3, 4, 6 and 7; class 5 has a single row.
CLASSES = np.array([1, 2, 3, 4, 6, 7])
SHARES = (0.360, 0.540, 0.060, 0.005, 0.010, 0.025)


def write_archive(raw: Path, rng: np.random.Generator) -> None:
    """Writes train.csv, test.csv and sample_submission.csv as Kaggle ships them."""
    table = _sites(rng, NUM_ROWS)
    table.insert(0, "Id", np.arange(NUM_ROWS))
    table.to_csv(raw / "train.csv", index=False)
    unlabeled = table.head(9).assign(Id=NUM_ROWS + np.arange(9))
    unlabeled.drop(columns="Cover_Type").to_csv(raw / "test.csv", index=False)
    unlabeled.filter(["Id"]).assign(Cover_Type=2).to_csv(
        raw / "sample_submission.csv", index=False
    )


def from_archive(raw: Path, source: Source, rng: np.random.Generator) -> PreparedFiles:
    """Returns the sites, split as MLE-bench splits them, under new ids."""
    table = pd.read_csv(find_file(raw, "train.csv"))
    table["Id"] = rng.permutation(len(table))
    train, hidden = hold_out(table, TEST_FRAC[source])
    return PreparedFiles(
        public={
            "train.csv": csv_bytes(train),
            "test.csv": csv_bytes(hidden.drop(columns="Cover_Type")),
        },
        labels=hidden.filter(["Id", "Cover_Type"]),
        num_train=len(train),
    )


def _sites(rng: np.random.Generator, n: int) -> pd.DataFrame:
    """Returns sites whose cover depends on height, moisture, area and soil."""
    height, wet = rng.normal(0, 1, (2, n))
    area = np.clip(np.round(1.5 - height + rng.normal(0, 0.8, n)), 0, 3).astype(int)
    moisture_of_soil = rng.normal(0, 1, NUM_SOILS)
    liking = 1.2 * wet[:, None] * moisture_of_soil + rng.gumbel(0, 1, (n, NUM_SOILS))
    liking[:, np.array(EMPTY_SOILS) - 1] = -np.inf
    soil = liking.argmax(axis=1)
    table = _measurements(rng, height, wet)
    for number in range(4):
        table[f"Wilderness_Area{number + 1}"] = (area == number).astype(int)
    for number in range(NUM_SOILS):
        table[f"Soil_Type{number + 1}"] = (soil == number).astype(int)
    warmth = -height + 0.6 * (area % 2) + 0.8 * moisture_of_soil[soil]
    liking = np.stack(
        [-1.2 * warmth, 0.4 - 0.3 * warmth**2, 1.5 * warmth - 1.0]
        + [2.0 * warmth + 1.2 * wet - 4.0, 1.8 * warmth - wet - 2.0]
        + [-2.0 * warmth - 0.8 * wet - 2.0],
        axis=1,
    )
    cover = _with_shares(4 * liking + rng.gumbel(0, 0.6, liking.shape))
    cover[0] = 5
    table["Cover_Type"] = cover
    return table


def _measurements(rng: np.random.Generator, height: Array, wet: Array) -> pd.DataFrame:
    """Returns the ten numeric columns, as whole numbers."""
    n = len(height)
    slope = rng.gamma(3, 5, n)
    table = pd.DataFrame(
        {
            "Elevation": 2980 + 290 * height,
            "Aspect": rng.normal(150, 110, n),
            "Slope": slope,
            "Horizontal_Distance_To_Hydrology": rng.gamma(1.3, 210, n) - 20,
            "Vertical_Distance_To_Hydrology": 50 - 35 * wet + rng.normal(0, 25, n),
            "Horizontal_Distance_To_Roadways": rng.gamma(1.7, 1_000, n),
            "Hillshade_9am": 225 - slope + rng.normal(0, 28, n),
            "Hillshade_Noon": rng.normal(221, 22, n),
            "Hillshade_3pm": 125 + slope + rng.normal(0, 40, n),
            "Horizontal_Distance_To_Fire_Points": rng.gamma(1.5, 1_050, n),
        }
    )
    return table.round().astype(int)


def _with_shares(liking: Array) -> Array:
    """Returns the class with the best score, after offsets that give the shares."""
    offset = np.zeros(len(SHARES))
    for _ in range(200):
        counts = np.bincount((liking + offset).argmax(axis=1), minlength=len(SHARES))
        offset -= 0.5 * np.log((counts + 1) / (np.array(SHARES) * len(liking) + 1))
    return CLASSES[(liking + offset).argmax(axis=1)]
