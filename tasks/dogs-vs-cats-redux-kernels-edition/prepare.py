"""Data of `dogs-vs-cats-redux`: photos of cats and dogs, or drawings of their faces."""

from pathlib import Path

import numpy as np
import pandas as pd

from mlagent_jax.env.archive import find_files
from mlagent_jax.env.media import jpeg_bytes, zip_bytes
from mlagent_jax.env.task_data import PreparedFiles, Source, hold_out

TEST_FRAC = {"real": 0.1, "lookalike": 0.75}
NUM_PER_CLASS = 480


def write_archive(raw: Path, rng: np.random.Generator) -> None:
    """Writes train.zip, test.zip and the sample as Kaggle has them."""
    images = {
        f"train/{name}.{number}.jpg": jpeg_bytes(_draw(name == "dog", rng))
        for name in ("cat", "dog")
        for number in range(NUM_PER_CLASS)
    }
    (raw / "train.zip").write_bytes(zip_bytes(images))
    # Kaggle's own test images have no labels; nothing is made from them.
    others = {f"test/{i}.jpg": images[f"train/cat.{i}.jpg"] for i in range(1, 5)}
    (raw / "test.zip").write_bytes(zip_bytes(others))
    sample = pd.DataFrame({"id": range(1, 5), "label": 0.5})
    sample.to_csv(raw / "sample_submission.csv", index=False)


def from_archive(raw: Path, source: Source, rng: np.random.Generator) -> PreparedFiles:
    """Returns Kaggle's training images, split anew; all are numbered anew."""
    images = find_files(raw, "train", ".jpg")
    table = pd.DataFrame({"name": list(images)})
    table["label"] = table["name"].str.startswith("dog").astype(int)
    train, test = hold_out(table, TEST_FRAC[source])
    public: dict[str, bytes | Path] = {}
    train_files = {
        f"train/{kind}.{number}.jpg": images[name]
        for kind, rows in train.groupby(train["name"].str[:3])
        for number, name in enumerate(rng.permutation(rows["name"]))
    }
    test = test.assign(id=rng.permutation(len(test)) + 1).sort_values("id")
    test_files = {
        f"test/{i}.jpg": images[name]
        for i, name in zip(test["id"], test["name"], strict=True)
    }
    public["train.zip"] = zip_bytes(train_files)
    public["test.zip"] = zip_bytes(test_files)
    return PreparedFiles(
        public=public, labels=test.filter(["id", "label"]), num_train=len(train)
    )


def _draw(is_dog: bool, rng: np.random.Generator) -> np.ndarray:
    """Returns a face: cats have pointed ears on top, dogs long ears at the sides."""
    height, width = rng.integers(44, 64, 2)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    y, x = y - rng.uniform(-0.15, 0.15), x - rng.uniform(-0.15, 0.15)
    ground, fur = rng.uniform(60, 200, 3), rng.uniform(30, 225, 3)
    image = ground + 25 * np.sin(rng.uniform(2, 6) * x + rng.uniform(0, 6))[..., None]
    side = np.abs(x)
    scale = rng.uniform(0.75, 1.15)
    if is_dog:
        ears = ((side - 0.5 * scale) / 0.16) ** 2 + ((y - 0.05) / 0.42) ** 2 < scale
        snout = (x / 0.22) ** 2 + ((y - 0.25) / 0.2) ** 2 < scale
    else:
        tip = 0.62 * scale
        ears = (
            (y > -0.85 * scale)
            & (y < -0.2)
            & (np.abs(side - 0.32) < (y + tip + 0.2) / 3)
        )
        snout = (x / 0.08) ** 2 + ((y - 0.18) / 0.06) ** 2 < scale
    head = (x / 0.5) ** 2 + (y / 0.48) ** 2 < scale
    eyes = ((side - 0.18) / 0.07) ** 2 + ((y + 0.12) / 0.07) ** 2 < scale
    image[head] = fur
    image[ears] = fur * rng.uniform(0.6, 1.1)
    image[snout] = fur * rng.uniform(0.5, 0.9)
    image[eyes] = 25
    if rng.random() < 0.3:  # Something in front.
        image[:, : int(rng.uniform(0.2, 0.5) * width)] = rng.uniform(40, 220, 3)
    if rng.random() < 0.5:
        image = image[:, ::-1]
    return np.clip(image + rng.normal(0, 18, image.shape), 0, 255).astype(np.uint8)
