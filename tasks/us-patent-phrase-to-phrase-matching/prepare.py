"""Data of `us-patent-phrase-to-phrase-matching`: phrases more or less alike."""

from pathlib import Path

import numpy as np
import pandas as pd

from mlagent_jax.env.archive import find_file
from mlagent_jax.env.task_data import (
    PreparedFiles,
    Source,
    csv_bytes,
    hex_ids,
    hold_out,
)

TEST_FRAC = {"real": 0.1, "lookalike": 0.6}

NUM_ROWS = 2_600
NUM_ANCHORS = 90
# Words of a row mean nearly the same, in every field.
FAMILIES = (
    ("device", "apparatus", "unit"), ("signal", "pulse", "wave"),
    ("cover", "lid", "cap"), ("fluid", "liquid", "solution"),
    ("heating", "thermal", "warming"), ("sensor", "detector", "probe"),
    ("metal", "alloy", "steel"), ("wheel", "roller", "disc"),
    ("cell", "battery", "accumulator"), ("frame", "chassis", "housing"),
    ("pipe", "tube", "conduit"), ("control", "regulating", "steering"),
    ("image", "picture", "display"), ("layer", "coating", "film"),
)  # fmt: skip
CONTEXTS = tuple(
    f"{section}{number}" for section in "ABCDEFGH" for number in ("01", "24", "60")
)
# Scores stand for how much the phrases share, in quarters.
STEP = 0.25
RATER_STD = 0.08
FILLERS = ("of", "for", "with", "and")


def write_archive(raw: Path, rng: np.random.Generator) -> None:
    """Writes train.csv, test.csv and sample_submission.csv as Kaggle ships them.

    A target keeps words of its anchor, swaps them for related ones or for others.
    """
    anchors = [_anchor(rng) for _ in range(NUM_ANCHORS)]
    rows = [_pair(rng, anchors) for _ in range(NUM_ROWS)]
    table = pd.DataFrame(rows, columns=["anchor", "target", "context", "score"])
    table.insert(0, "id", hex_ids(NUM_ROWS, 16, rng))
    table.to_csv(raw / "train.csv", index=False)
    unlabeled = table.head(36).drop(columns="score")
    unlabeled.to_csv(raw / "test.csv", index=False)
    unlabeled.filter(["id"]).assign(score=0).to_csv(
        raw / "sample_submission.csv", index=False
    )


def from_archive(raw: Path, source: Source, rng: np.random.Generator) -> PreparedFiles:
    """Returns the pairs, split by row as MLE-bench splits them, under new ids."""
    # A text may be the word "null", which pandas would take for a gap.
    table = pd.read_csv(find_file(raw, "train.csv"), keep_default_na=False)
    table["id"] = hex_ids(len(table), 16, rng)
    train, hidden = hold_out(table, TEST_FRAC[source])
    return PreparedFiles(
        public={
            "train.csv": csv_bytes(train),
            "test.csv": csv_bytes(hidden.drop(columns="score")),
        },
        labels=hidden.filter(["id", "score"]),
        num_train=len(train),
    )


def _anchor(rng: np.random.Generator) -> tuple[list[int], list[str], list[str]]:
    """Returns the families and words of an anchor, and the fields it is used in."""
    families = rng.choice(len(FAMILIES), int(rng.integers(2, 4)), replace=False)
    words = [str(rng.choice(FAMILIES[i])) for i in families]
    contexts = rng.choice(CONTEXTS, 4, replace=False)
    return families.tolist(), words, [str(c) for c in contexts]


def _pair(
    rng: np.random.Generator, anchors: list[tuple[list[int], list[str], list[str]]]
) -> tuple[str, str, str, float]:
    families, words, contexts = anchors[rng.integers(len(anchors))]
    context = str(rng.choice(contexts))
    # In the sections G and H related words count for more.
    worth_of_related = 0.75 if context[0] in "GH" else 0.45
    closeness = rng.random() ** 0.8
    target: list[str] = []
    worth = 0.0
    for family, word in zip(families, words, strict=True):
        chance = rng.random()
        if chance < 0.6 * closeness:
            worth += 1.0
            target.append(f"{word}s" if rng.random() < 0.25 else word)
        elif chance < closeness:
            other = str(rng.choice(FAMILIES[family]))
            worth += 1.0 if other == word else worth_of_related
            target.append(other)
        else:
            target.append(str(rng.choice(FAMILIES[rng.integers(len(FAMILIES))])))
    if rng.random() < 0.3:
        target = list(reversed(target))
    if rng.random() < 0.3:
        target.insert(1, str(rng.choice(FILLERS)))
    likeness = np.clip(worth / len(words) + rng.normal(0, RATER_STD), 0, 1)
    score = float(np.round(likeness / STEP) * STEP)
    return " ".join(words), " ".join(target), context, score
