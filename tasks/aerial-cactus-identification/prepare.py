"""Data of `aerial-cactus-identification`: photos from the air, or drawings of such."""

from pathlib import Path

import numpy as np
import pandas as pd

from mlagent_jax.env.archive import find_file, find_files
from mlagent_jax.env.media import jpeg_bytes, zip_bytes
from mlagent_jax.env.task_data import PreparedFiles, Source, csv_bytes, hold_out

TEST_FRAC = {"real": 0.19, "lookalike": 0.875}
SIZE = 32
NUM_IMAGES = 1_600
CACTUS_FRAC = 0.6


def write_archive(raw: Path, rng: np.random.Generator) -> None:
    """Writes train.csv, train.zip, test.zip and the sample as Kaggle has them."""
    labels = (rng.random(NUM_IMAGES) < CACTUS_FRAC).astype(int)
    names = [
        f"{rng.integers(2**62):016x}{rng.integers(2**62):016x}.jpg" for _ in labels
    ]
    images = {
        f"train/{name}": jpeg_bytes(_draw(bool(label), rng), quality=90)
        for name, label in zip(names, labels, strict=True)
    }
    table = pd.DataFrame({"id": names, "has_cactus": labels})
    table.to_csv(raw / "train.csv", index=False)
    (raw / "train.zip").write_bytes(zip_bytes(images))
    # Kaggle's own test images have no labels; nothing is made from them.
    others = {name.replace("train", "test"): images[name] for name in list(images)[:4]}
    (raw / "test.zip").write_bytes(zip_bytes(others))
    sample = pd.DataFrame({"id": [n.removeprefix("test/") for n in others]})
    sample.assign(has_cactus=0.5).to_csv(raw / "sample_submission.csv", index=False)


def from_archive(raw: Path, source: Source, rng: np.random.Generator) -> PreparedFiles:
    """Returns Kaggle's training images, split anew as MLE-bench does, in two zips."""
    del rng  # Names are hashes and the split shuffles.
    table = pd.read_csv(find_file(raw, "train.csv"))
    images = find_files(raw, "train", ".jpg")
    train, test = hold_out(table, TEST_FRAC[source])
    return PreparedFiles(
        public={
            "train.csv": csv_bytes(train),
            "train.zip": zip_bytes({f"train/{n}": images[n] for n in train["id"]}),
            "test.zip": zip_bytes({f"test/{n}": images[n] for n in test["id"]}),
        },
        labels=test.filter(["id", "has_cactus"]),
        num_train=len(train),
    )


def _draw(has_cactus: bool, rng: np.random.Generator) -> np.ndarray:
    """Returns ground with bushes, and with a ribbed column in it where it should be."""
    y, x = np.mgrid[:SIZE, :SIZE]
    image = np.array([150, 130, 120]) + rng.normal(0, 12, 3) + np.zeros((SIZE, SIZE, 3))
    for _ in range(rng.integers(2, 6)):
        center, radius = rng.uniform(0, SIZE, 2), rng.uniform(2, 6)
        bush = (y - center[0]) ** 2 + (x - center[1]) ** 2 < radius**2
        image[bush] += np.array([-40, -15, -40]) * rng.uniform(0.4, 1.2)
    angle, (center_y, center_x) = rng.uniform(0, np.pi), rng.uniform(8, 24, 2)
    along = (y - center_y) * np.cos(angle) + (x - center_x) * np.sin(angle)
    across = (x - center_x) * np.cos(angle) - (y - center_y) * np.sin(angle)
    column = (np.abs(along) < rng.uniform(8, 13)) & (
        np.abs(across) < rng.uniform(1.5, 3)
    )
    strength = rng.uniform(0.5, 1.2)
    if has_cactus:
        ribs = 18 * np.cos(2.4 * across[..., None])
        image = np.where(
            column[..., None], image + strength * ([-30, 12, -22] + ribs), image
        )
    elif rng.random() < 0.5:  # A shadow of the same shape.
        image[column] -= strength * np.array([35, 32, 30])
    return np.clip(image + rng.normal(0, 9, image.shape), 0, 255).astype(np.uint8)
