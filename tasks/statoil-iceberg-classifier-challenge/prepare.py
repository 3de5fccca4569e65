"""Data of `statoil-iceberg-classifier-challenge`: icebergs and ships by radar."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlagent_jax.env.archive import find_file
from mlagent_jax.env.task_data import PreparedFiles, Source, hex_ids, hold_out

Array = npt.NDArray[Any]

TEST_FRAC = {"real": 0.2, "lookalike": 0.8}
TARGET = "is_iceberg"

NUM_ROWS = 1_500
# Pixels of an edge; 75 in the original.
SIZE = 12
# Share of images whose incidence angle is the text "na", as in Kaggle's train.json.
NO_ANGLE_FRAC = 0.08
ICEBERG_FRAC = 0.47
# Looks per pixel: fewer make the speckle of the radar stronger.
NUM_LOOKS = 3.0


def write_archive(raw: Path, rng: np.random.Generator) -> None:
    """Writes train.json, test.json and sample_submission.csv as Kaggle's 7z files hold.

    Ships are narrow and echo with their hull; icebergs are rounder and turn the
    polarization more. The sea is darker at larger angles.
    """
    ids = hex_ids(NUM_ROWS, 8, rng)
    rows = [_scene(rng, name) for name in ids]
    test = [{k: v for k, v in row.items() if k != TARGET} for row in rows[:9]]
    folder = raw / "data" / "processed"
    folder.mkdir(parents=True)
    (folder / "train.json").write_text(json.dumps(rows))
    (folder / "test.json").write_text(json.dumps(test))
    sample = pd.DataFrame({"id": ids[:9], TARGET: 0.5})
    sample.to_csv(folder / "sample_submission.csv", index=False)


def from_archive(raw: Path, source: Source, rng: np.random.Generator) -> PreparedFiles:
    """Returns the images, split as MLE-bench splits them, under new ids."""
    rows: list[dict[str, Any]] = json.loads(find_file(raw, "train.json").read_text())
    for row, name in zip(rows, hex_ids(len(rows), 8, rng), strict=True):
        row["id"] = name
    train, hidden = hold_out(pd.DataFrame({"row": rows}), TEST_FRAC[source])
    test = [{k: v for k, v in row.items() if k != TARGET} for row in hidden["row"]]
    labels = [{"id": row["id"], TARGET: row[TARGET]} for row in hidden["row"]]
    return PreparedFiles(
        public={
            "train.json": json.dumps(train["row"].tolist()).encode(),
            "test.json": json.dumps(test).encode(),
        },
        labels=pd.DataFrame(labels),
        num_train=len(train),
    )


def _scene(rng: np.random.Generator, name: str) -> dict[str, Any]:
    """Returns one object at sea: two bands in decibels and the incidence angle."""
    is_iceberg = rng.random() < ICEBERG_FRAC
    angle = rng.normal(39, 4)
    sea = rng.normal(0, 1.5) - 0.35 * (angle - 39)
    length = rng.lognormal(0.9, 0.35)
    width = length * (rng.uniform(0.55, 1) if is_iceberg else rng.uniform(0.2, 0.6))
    strength = rng.normal(11 if is_iceberg else 13, 2.5)
    shape = _blob(rng, length, width)
    turned = rng.normal(-4 if is_iceberg else -7, 1.2)
    bands = [
        10 ** ((sea - 20) / 10) + shape * 10 ** ((strength - 20) / 10),
        10 ** ((sea - 27) / 10) + shape * 10 ** ((strength + turned - 20) / 10),
    ]
    speckle = rng.gamma(NUM_LOOKS, 1 / NUM_LOOKS, (2, SIZE * SIZE))
    decibels = np.round(10 * np.log10(np.stack(bands) * speckle), 4)
    return {
        "id": name,
        "band_1": decibels[0].tolist(),
        "band_2": decibels[1].tolist(),
        "inc_angle": "na" if rng.random() < NO_ANGLE_FRAC else round(angle, 4),
        TARGET: int(is_iceberg),
    }


def _blob(rng: np.random.Generator, length: float, width: float) -> Array:
    """Returns how much of the object's echo each pixel gets, at most 1."""
    turn = rng.uniform(0, np.pi)
    centre = (SIZE - 1) / 2 + rng.normal(0, 0.8, 2)
    rows, columns = np.indices((SIZE, SIZE))
    y, x = rows - centre[0], columns - centre[1]
    along = (x * np.cos(turn) + y * np.sin(turn)) / length
    across = (y * np.cos(turn) - x * np.sin(turn)) / width
    return np.exp(-(along**2 + across**2) / 2).ravel()
