"""Data of `denoising-dirty-documents`: scanned pages with stains, and without."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from mlagent_jax.env.archive import find_files
from mlagent_jax.env.media import png_bytes
from mlagent_jax.env.task_data import (
    PreparedFiles,
    Source,
    csv_bytes,
    hold_out,
    split_parts,
)

Array = npt.NDArray[Any]

TEST_FRAC = {"real": 0.2, "lookalike": 0.4}

NUM_PAGES = 20
# 2/15 of the original's 540 pixels by 258 or 420.
WIDTH, HEIGHTS = 72, (34, 56)
FONT_SIZES = (9, 10, 11)
WORDS = (
    "there", "are", "several", "classic", "spatial", "filters", "for", "reducing", "or",
    "eliminating", "high", "frequency", "noise", "from", "images", "the", "mean",
    "filter", "the", "median", "filter", "and", "the", "closing",
)  # fmt: skip


def write_archive(raw: Path, rng: np.random.Generator) -> None:
    """Writes train/, train_cleaned/, test/ and sampleSubmission.csv as Kaggle's."""
    for folder in ("train", "train_cleaned", "test"):
        (raw / folder).mkdir()
    numbers = 1 + rng.permutation(2 * NUM_PAGES)[: NUM_PAGES + 1]
    for number in numbers[:-1]:
        clean = _page(rng)
        (raw / "train_cleaned" / f"{number}.png").write_bytes(_png(clean))
        (raw / "train" / f"{number}.png").write_bytes(_png(_soil(rng, clean)))
    page = _soil(rng, _page(rng))
    (raw / "test" / f"{numbers[-1]}.png").write_bytes(_png(page))
    ids = _pixel_ids(str(numbers[-1]), *page.shape)
    sample = pd.DataFrame({"id": ids, "value": 1})
    (raw / "sampleSubmission.csv").write_bytes(csv_bytes(sample))


def from_archive(raw: Path, source: Source, rng: np.random.Generator) -> PreparedFiles:
    """Returns the pages, split as MLE-bench splits them, under new numbers.

    The pixels of one page belong to one hidden part together.
    """
    dirty = find_files(raw, "train", ".png")
    cleaned = find_files(raw, "train_cleaned", ".png")
    pages = pd.DataFrame({"name": list(dirty)})
    pages["number"] = 1 + rng.permutation(len(pages))
    train, hidden = hold_out(pages, TEST_FRAC[source])
    public: dict[str, bytes | Path] = {}
    for name, number in zip(train["name"], train["number"], strict=True):
        public[f"train/{number}.png"] = dirty[name]
        public[f"train_cleaned/{number}.png"] = cleaned[name]
    tables: list[pd.DataFrame] = []
    for name, number in zip(hidden["name"], hidden["number"], strict=True):
        public[f"test/{number}.png"] = dirty[name]
        with Image.open(cleaned[name]) as image:
            pixels = np.asarray(image.convert("L")) / 255
        ids = _pixel_ids(str(number), *pixels.shape)
        tables.append(
            pd.DataFrame({"id": ids, "value": pixels.ravel(), "page": number})
        )
    labels = pd.concat(tables, ignore_index=True)
    labels["part"] = split_parts(labels.pop("page").to_numpy(), rng)
    return PreparedFiles(public=public, labels=labels, num_train=len(train))


def _pixel_ids(page: str, height: int, width: int) -> list[str]:
    """Returns page_row_column of every pixel, row by row, counted from 1."""
    rows = [f"{page}_{row}_" for row in range(1, height + 1)]
    return [f"{row}{column}" for row in rows for column in range(1, width + 1)]


def _png(page: Array) -> bytes:
    return png_bytes(np.round(255 * np.clip(page, 0, 1)).astype(np.uint8))


def _page(rng: np.random.Generator) -> Array:
    """Returns a clean page: lines of dark text on white, 0 (black) to 1."""
    height = int(rng.choice(HEIGHTS))
    image = Image.new("L", (WIDTH, height), 255)
    draw = ImageDraw.Draw(image)
    size = int(rng.choice(FONT_SIZES))
    ink = int(rng.integers(0, 70))
    for top in range(2, height - size, size + 3):
        line = " ".join(str(word) for word in rng.choice(WORDS, 4))
        draw.text((2, top), line, fill=ink, font=ImageFont.load_default(size))
    return np.asarray(image) / 255


def _soil(rng: np.random.Generator, clean: Array) -> Array:
    """Returns the page under a coffee ring, creases, shade and grain."""
    y, x = np.indices(clean.shape)
    paper = np.ones(clean.shape)
    for _ in range(int(rng.integers(1, 3))):
        centre_y, centre_x = rng.uniform(0, clean.shape[0]), rng.uniform(0, WIDTH)
        distance = np.hypot(y - centre_y, x - centre_x)
        radius, edge = rng.uniform(10, 25), rng.uniform(1.5, 4)
        paper -= rng.uniform(0.2, 0.45) * np.exp(-(((distance - radius) / edge) ** 2))
        paper -= rng.uniform(0, 0.15) * (distance < radius)
    for _ in range(int(rng.integers(1, 4))):
        slope, offset = rng.normal(0, 0.5), rng.uniform(0, clean.shape[0])
        crease = (y - offset - slope * (x - WIDTH / 2)) / rng.uniform(1, 3)
        paper -= rng.uniform(0.1, 0.3) * np.exp(-(crease**2))
    paper -= rng.uniform(0, 0.25) * np.cos((x + y) / rng.uniform(20, 60)) ** 2
    grain = rng.normal(0, 0.03, clean.shape)
    faded = clean + rng.uniform(0.1, 0.3)
    return np.minimum(np.clip(paper, 0.25, 1), faded) + grain
