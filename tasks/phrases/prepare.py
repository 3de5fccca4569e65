"""Data of the task `phrases`: generated pairs of patent phrases with a similarity."""

import numpy as np
import pandas as pd

from mlagent_jax.env.task import PreparedData, split_rows

NUM_TRAIN = 600
NUM_ROWS = 2_200
# Words of a row mean nearly the same.
FAMILIES = (
    ("device", "apparatus", "unit"), ("signal", "pulse", "wave"),
    ("cover", "lid", "cap"), ("fluid", "liquid", "solution"),
    ("heat", "thermal", "warming"), ("sensor", "detector", "probe"),
    ("metal", "alloy", "steel"), ("wheel", "roller", "disc"),
    ("cell", "battery", "accumulator"), ("frame", "chassis", "housing"),
)  # fmt: skip
FIELDS = ("A47", "B60", "C01", "F16", "G01", "H04")


def prepare(rng: np.random.Generator) -> PreparedData:
    """Returns phrases of three words; equal words count most, related ones half."""
    rows = [_pair(rng) for _ in range(NUM_ROWS)]
    table = pd.DataFrame(rows, columns=["score", "anchor", "target", "field"])
    return split_rows(table, NUM_TRAIN)


def _pair(rng: np.random.Generator) -> tuple[float, str, str, str]:
    families = rng.choice(len(FAMILIES), 3, replace=False)
    anchor = [str(rng.choice(FAMILIES[i])) for i in families]
    target: list[str] = []
    closeness = rng.random()
    for word, family in zip(anchor, families, strict=True):
        chance = rng.random()
        if chance < closeness * 0.6:
            target.append(_inflect(rng, word))
        elif chance < closeness:
            target.append(str(rng.choice(FAMILIES[family])))
        else:
            target.append(str(rng.choice(FAMILIES[rng.integers(len(FAMILIES))])))
    worth = 0.0
    for word, other in zip(anchor, target, strict=True):
        stem = other.removesuffix("s")
        family = next(f for f in FAMILIES if word in f)
        worth += 1.0 if stem == word else 0.5 if stem in family else 0.0
    score = np.clip(worth / 3 + rng.normal(0, 0.08), 0, 1)
    order = rng.permutation(3)
    phrase = " ".join(target[i] for i in order)
    field = str(rng.choice(FIELDS))
    return float(np.round(score * 4) / 4), " ".join(anchor), phrase, field


def _inflect(rng: np.random.Generator, word: str) -> str:
    return f"{word}s" if rng.random() < 0.3 else word
