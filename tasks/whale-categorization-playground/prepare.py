"""Data of `whale-categorization-playground`: photos of flukes of individual whales."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from mlagent_jax.env.archive import find_file, find_files
from mlagent_jax.env.media import jpeg_bytes
from mlagent_jax.env.task_data import (
    PreparedFiles,
    Source,
    csv_bytes,
    hex_ids,
    hold_out,
)

Array = npt.NDArray[Any]

TEST_FRAC = {"real": 0.1, "lookalike": 0.55}
NEW_WHALE = "new_whale"

NUM_WHALES = 45
NUM_PHOTOS = 900
# Share of photos whose whale nobody has named.
UNNAMED_FRAC = 0.08
# A fluke's own pattern, as squares of black and white skin.
PATTERN_ROWS, PATTERN_COLUMNS = 4, 10
# Photos differ in size; these are (height, width).
SIZES = ((16, 32), (20, 40), (18, 40), (24, 48))


def write_archive(raw: Path, rng: np.random.Generator) -> None:
    """Writes train.csv, train/, test/ and sample_submission.csv as Kaggle ships them.

    A few whales are seen often, many twice and some once.
    """
    names = [f"w_{name}" for name in hex_ids(NUM_WHALES, 7, rng)]
    patterns = rng.normal(0, 1, (NUM_WHALES, PATTERN_ROWS, PATTERN_COLUMNS))
    chances = 1 / np.arange(2, NUM_WHALES + 2)
    whales = rng.choice(NUM_WHALES, NUM_PHOTOS, p=chances / chances.sum())
    is_unnamed = rng.random(NUM_PHOTOS) < UNNAMED_FRAC
    ids = [
        NEW_WHALE if u else names[w] for w, u in zip(whales, is_unnamed, strict=True)
    ]
    files = [f"{name}.jpg" for name in hex_ids(NUM_PHOTOS + 9, 8, rng)]
    for folder in ("train", "test"):
        (raw / folder).mkdir()
    for file, whale, is_new in zip(files[:-9], whales, is_unnamed, strict=True):
        stranger = rng.normal(0, 1, patterns[0].shape)
        photo = _photo(rng, stranger if is_new else patterns[whale])
        (raw / "train" / file).write_bytes(photo)
    for file in files[-9:]:
        photo = _photo(rng, patterns[rng.integers(NUM_WHALES)])
        (raw / "test" / file).write_bytes(photo)
    table = pd.DataFrame({"Image": files[:-9], "Id": ids})
    table.to_csv(raw / "train.csv", index=False)
    guess = " ".join([NEW_WHALE, *names[:4]])
    sample = pd.DataFrame({"Image": files[-9:], "Id": guess})
    sample.to_csv(raw / "sample_submission.csv", index=False)


def from_archive(raw: Path, source: Source, rng: np.random.Generator) -> PreparedFiles:
    """Returns the photos, split as MLE-bench splits them, under new names."""
    table = pd.read_csv(find_file(raw, "train.csv"))
    photos = find_files(raw, "train", ".jpg")
    is_test = _choose_test(table, TEST_FRAC[source])
    names = pd.Series([f"{name}.jpg" for name in hex_ids(len(table), 8, rng)])
    public: dict[str, bytes | Path] = {
        f"{'test' if hidden else 'train'}/{new}": photos[old]
        for old, new, hidden in zip(table["Image"], names, is_test, strict=True)
    }
    table = table.assign(Image=names).iloc[rng.permutation(len(table))]
    train, hidden = table[~is_test[table.index]], table[is_test[table.index]]
    known = {*train["Id"], NEW_WHALE}
    labels = hidden.assign(Id=hidden["Id"].where(hidden["Id"].isin(known), NEW_WHALE))
    return PreparedFiles(
        public={"train.csv": csv_bytes(train), **public},
        labels=labels,
        num_train=len(train),
        classes=tuple(sorted(known)),
    )


def _choose_test(table: pd.DataFrame, test_frac: float) -> Array:
    """Returns which photos are hidden.

    Of a whale with two photos or more, one goes to each side; the only photo of a
    whale is hidden with probability 0.1; of the rest, `test_frac` are.
    """
    rng = np.random.default_rng(0)
    side = pd.Series("rest", table.index)
    for whale in table["Id"].unique():
        photos = table[table["Id"] == whale]
        if len(photos) >= 2:
            first, second = photos.sample(2, random_state=0).index
            side[first], side[second] = "train", "test"
        else:
            chosen = rng.choice(["train", "test"], replace=False, p=[0.9, 0.1])
            side[photos.index[0]] = chosen
    rest = table.loc[side.to_numpy() == "rest"]
    _, test = hold_out(rest, test_frac)
    side[test.index] = "test"
    return (side == "test").to_numpy()


def _photo(rng: np.random.Generator, pattern: Array) -> bytes:
    """Returns a JPEG of a fluke above the sea: some in colour, in changing light."""
    height, width = SIZES[rng.integers(len(SIZES))]
    contrast, light = 28 * rng.lognormal(0, 0.3), rng.normal(110, 18)
    skin = Image.fromarray((light + contrast * pattern).astype(np.float32))
    shift = rng.uniform(-0.04, 0.04, 4) * (width, height, width, height)
    box = np.clip(shift * (PATTERN_COLUMNS / width), 0, 0.5)
    region = (box[0], box[1], PATTERN_COLUMNS - box[2], PATTERN_ROWS - box[3])
    skin = np.asarray(skin.resize((width, height), Image.Resampling.BILINEAR, region))
    rows, columns = np.indices((height, width))
    across = np.abs(2 * columns / (width - 1) - 1)
    is_sea = rows < height * 0.5 * (1 - across)
    pixels = np.where(is_sea, light + 50, skin) + rng.normal(0, 12, skin.shape)
    grey = np.clip(pixels, 0, 255).astype(np.uint8)
    if rng.random() < 0.6:
        tint = np.array([0.95, 1.0, 1.08])
        return jpeg_bytes(np.clip(grey[..., None] * tint, 0, 255).astype(np.uint8))
    return jpeg_bytes(grey)
