"""Data of `leaf-classification`: leaves of 99 species, as images and 192 features."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw

from mlagent_jax.env.archive import find_file, find_files
from mlagent_jax.env.media import jpeg_bytes
from mlagent_jax.env.task_data import PreparedFiles, Source, csv_bytes, hold_out

Array = npt.NDArray[Any]

TEST_FRAC = {"real": 0.1, "lookalike": 0.4}

# As in Kaggle's archive; what is smaller here are the images.
NUM_SPECIES, LEAVES_PER_SPECIES = 99, 10
NUM_BINS = 64
IMAGE_SIZE = 40
# How many pixels or edges a histogram counts: fewer make it noisier.
NUM_COUNTED = 60
# Spread of species, and of leaves of one species, in the logarithm of a bin.
SPECIES_STD, LEAF_STD = 0.9, 0.6


def write_archive(raw: Path, rng: np.random.Generator) -> None:
    """Writes train.csv, test.csv, sample_submission.csv and images/ as Kaggle's.

    A species is a distribution of margin and texture patterns and an outline.
    """
    names = _species_names()
    num = NUM_SPECIES * LEAVES_PER_SPECIES
    species = rng.permutation(np.arange(num) % NUM_SPECIES)
    outlines = _outlines(rng, species)
    table = pd.DataFrame({"id": 1 + rng.permutation(2 * num)[:num]})
    table["species"] = np.array(names)[species]
    features = {
        "margin": _histograms(rng, species),
        # Distances from the centre, as small numbers.
        "shape": outlines / outlines.sum(axis=1, keepdims=True) / 20,
        "texture": _histograms(rng, species),
    }
    for name, values in features.items():
        bins = [f"{name}{i + 1}" for i in range(NUM_BINS)]
        table = table.join(pd.DataFrame(values.round(6), columns=bins))
    (raw / "images").mkdir()
    for number, outline in zip(table["id"], outlines, strict=True):
        (raw / "images" / f"{number}.jpg").write_bytes(_picture(outline))
    table.to_csv(raw / "train.csv", index=False)
    unlabeled = table.head(9).drop(columns="species")
    unlabeled.to_csv(raw / "test.csv", index=False)
    guess = dict.fromkeys(names, 1 / NUM_SPECIES)
    unlabeled.filter(["id"]).assign(**guess).to_csv(
        raw / "sample_submission.csv", index=False
    )


def from_archive(raw: Path, source: Source, rng: np.random.Generator) -> PreparedFiles:
    """Returns the leaves, split as MLE-bench splits them, under new ids."""
    table = pd.read_csv(find_file(raw, "train.csv"))
    images = find_files(raw, "images", ".jpg")
    old_ids = table["id"].tolist()
    table["id"] = 1 + rng.permutation(len(table))
    train, hidden = hold_out(table, TEST_FRAC[source])
    columns = {n: (hidden["species"] == n).astype(float) for n in _species_names()}
    guesses = pd.DataFrame(columns, index=hidden.index)
    return PreparedFiles(
        public={
            "train.csv": csv_bytes(train),
            "test.csv": csv_bytes(hidden.drop(columns="species")),
            **{
                f"images/{new}.jpg": images[f"{old}.jpg"]
                for old, new in zip(old_ids, table["id"], strict=True)
            },
        },
        labels=hidden.filter(["id"]).join(guesses),
        num_train=len(train),
    )


def _species_names() -> list[str]:
    declared = (Path(__file__).parent / "task.toml").read_text(encoding="utf-8")
    return tomllib.loads(declared)["target_columns"]


def _histograms(rng: np.random.Generator, species: Array) -> Array:
    """Returns what share of the counted places falls into each bin, a row a leaf."""
    of_species = rng.normal(0, SPECIES_STD, (NUM_SPECIES, NUM_BINS))
    logits = of_species[species] + rng.normal(0, LEAF_STD, (len(species), NUM_BINS))
    chances = np.exp(logits)
    chances /= chances.sum(axis=1, keepdims=True)
    return rng.multinomial(NUM_COUNTED, chances) / NUM_COUNTED


def _outlines(rng: np.random.Generator, species: Array) -> Array:
    """Returns the distance of the edge from the centre in each direction, about 1."""
    angle = 2 * np.pi * np.arange(NUM_BINS) / NUM_BINS
    orders = np.arange(1, 9)[:, None]
    amplitude = rng.normal(0, 0.2, (NUM_SPECIES, 8, 1)) / np.sqrt(orders)
    phase = rng.uniform(0, 2 * np.pi, (NUM_SPECIES, 8, 1))
    turn = rng.normal(0, 0.3, (len(species), 1, 1))
    waves = amplitude[species] * np.cos(orders * (angle + turn) + phase[species])
    noise = rng.normal(0, 0.03, (len(species), NUM_BINS))
    return np.clip(1 + waves.sum(axis=1) + noise, 0.15, None)


def _picture(outline: Array) -> bytes:
    """Returns a JPEG file of the leaf, white on black."""
    angle = 2 * np.pi * np.arange(NUM_BINS) / NUM_BINS
    radius = 0.48 * IMAGE_SIZE * outline / outline.max()
    x = IMAGE_SIZE / 2 + radius * np.cos(angle)
    y = IMAGE_SIZE / 2 + radius * np.sin(angle)
    picture = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    ImageDraw.Draw(picture).polygon(list(zip(x, y, strict=True)), fill=255)
    return jpeg_bytes(np.asarray(picture))
