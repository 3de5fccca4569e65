"""Data of `plant-pathology-2020`: photos of apple leaves, or drawings of leaves."""

from pathlib import Path

import numpy as np
import pandas as pd

from mlagent_jax.env.archive import find_file, find_files
from mlagent_jax.env.media import jpeg_bytes
from mlagent_jax.env.task_data import PreparedFiles, Source, csv_bytes, hold_out

TEST_FRAC = {"real": 0.1, "lookalike": 0.8}
NUM_LEAVES = 900
HEIGHT, WIDTH = 48, 72
TARGETS = ("healthy", "multiple_diseases", "rust", "scab")
KIND_FRACS = (0.28, 0.12, 0.3, 0.3)


def write_archive(raw: Path, rng: np.random.Generator) -> None:
    """Writes train.csv, test.csv, the sample and images/ as Kaggle has them."""
    kinds = rng.choice(len(TARGETS), NUM_LEAVES, p=KIND_FRACS)
    (raw / "images").mkdir()
    for number, kind in enumerate(kinds):
        image = jpeg_bytes(_draw(TARGETS[kind], rng))
        (raw / "images" / f"Train_{number}.jpg").write_bytes(image)
    table = pd.DataFrame(np.eye(4, dtype=int)[kinds], columns=list(TARGETS))
    table.insert(0, "image_id", [f"Train_{i}" for i in range(NUM_LEAVES)])
    table.to_csv(raw / "train.csv", index=False)
    # Kaggle's own test images have no labels; nothing is made from them.
    (raw / "images" / "Test_0.jpg").write_bytes(jpeg_bytes(_draw("rust", rng)))
    test = pd.DataFrame({"image_id": ["Test_0"]})
    test.to_csv(raw / "test.csv", index=False)
    sample = test.assign(**dict.fromkeys(TARGETS, 0.25))
    sample.to_csv(raw / "sample_submission.csv", index=False)


def from_archive(raw: Path, source: Source, rng: np.random.Generator) -> PreparedFiles:
    """Returns Kaggle's training images, split and numbered anew on both sides."""
    table = pd.read_csv(find_file(raw, "train.csv"))
    images = find_files(raw, "images", ".jpg")
    public: dict[str, bytes | Path] = {}
    sides: list[pd.DataFrame] = []
    for name, rows in zip(
        ("Train", "Test"), hold_out(table, TEST_FRAC[source]), strict=True
    ):
        numbers = rng.permutation(len(rows))
        new_ids = [f"{name}_{number}" for number in numbers]
        for old, new in zip(rows["image_id"], new_ids, strict=True):
            public[f"images/{new}.jpg"] = images[f"{old}.jpg"]
        side = rows.assign(image_id=new_ids).iloc[np.argsort(numbers)]
        sides.append(side)
    train, test = sides
    public["train.csv"] = csv_bytes(train)
    public["test.csv"] = csv_bytes(test.filter(["image_id"]))
    return PreparedFiles(
        public=public, labels=test.filter(["image_id", *TARGETS]), num_train=len(train)
    )


def _draw(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Returns a leaf on blurred ground; rust is orange spots, scab dark smears."""
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1.4 : 1.4 : WIDTH * 1j]
    image = (
        np.array([95, 110, 85]) + rng.normal(0, 18, 3) + 15 * np.sin(3 * x)[..., None]
    )
    angle = rng.uniform(-0.5, 0.5)
    along, across = (
        x * np.cos(angle) + y * np.sin(angle),
        y * np.cos(angle) - x * np.sin(angle),
    )
    leaf = (along / 1.15) ** 2 + (across / 0.62) ** 2 < 1
    image[leaf] = np.array([95, 150, 60]) + rng.normal(0, 14, 3)
    image[leaf & (np.abs(across) < 0.03)] += 30
    colors: list[tuple[np.ndarray, float]] = []
    orange, dark = np.array([205, 130, 40]), np.array([60, 75, 40])
    if kind in {"rust", "multiple_diseases"}:
        colors += [(orange, rng.uniform(0.03, 0.08)) for _ in range(rng.integers(1, 7))]
    if kind in {"scab", "multiple_diseases"}:
        colors += [(dark, rng.uniform(0.07, 0.18)) for _ in range(rng.integers(1, 5))]
    if rng.random() < 0.6:  # Dirt and light tell nothing.
        colors += [(rng.uniform(60, 220, 3), 0.06) for _ in range(rng.integers(1, 4))]
    for color, radius in colors:
        center = rng.uniform(-0.8, 0.8), rng.uniform(-0.4, 0.4)
        spot = (along - center[0]) ** 2 + (across - center[1]) ** 2 < radius**2
        image[spot & leaf] = 0.25 * image[spot & leaf] + 0.75 * color
    image = image * rng.uniform(0.7, 1.2)
    return np.clip(image + rng.normal(0, 9, image.shape), 0, 255).astype(np.uint8)
