"""Data of `jigsaw-toxic-comment-classification-challenge`: talk page comments.

The made-up comments are rude in mild words and about made-up groups only.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from mlagent_jax.env.archive import find_file
from mlagent_jax.env.task_data import PreparedFiles, Source, csv_bytes, hex_ids

LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
UNSCORED = -1

NUM_TRAIN = 900
NUM_TEST = 1_600
# Toxic comments are rarer in the original (10 %), but so are test scores' errors.
TOXIC_FRAC = 0.3
UNSCORED_FRAC = 0.25
LABEL_NOISE = 0.03
# Chance that a toxic comment has a passage of each kind.
KIND_FRACS = {"obscene": 0.5, "threat": 0.15, "insult": 0.5, "identity_hate": 0.2}
TOPICS = (
    "article", "section", "source", "photo", "template", "category", "rule", "vandal",
    "draft", "title",
)  # fmt: skip
TALK = (
    "Please see the talk page of the {t} before you edit it again",
    "I have restored the {t}, since the {t} was not neutral",
    "Thanks for the {t}, it reads much better now",
    "Why was my {t} about the {t} deleted without a word",
    "The {t} cites a {t} from 1987, which is hardly reliable",
    "You may be blocked if you remove the {t} one more time",
    "That {t} is a crap source and the idiot in the story is fictional",
    "The film is called Kill the Moron, so the {t} must say so",
)
PASSAGES = {
    "obscene": (
        "this is total crap", "what a load of bull", "screw your {t}",
        "damn this piece of crap {t}", "bloody hell with your {t}",
    ),
    "threat": (
        "i will find you and hurt you", "watch your back tonight",
        "you will pay for this with your teeth", "i know where you live",
    ),
    "insult": (
        "you are an idiot", "you pathetic moron", "go away you loser",
        "only a clown like you writes such a {t}", "you stupid fool",
    ),
    "identity_hate": (
        "all zorgs should leave", "typical filthy zorg", "you smell like a blarg",
        "blargs ruin every {t}",
    ),
}  # fmt: skip
PLAIN_TOXIC = ("shut up", "nobody wants you here", "your {t} is garbage", "get a life")


def write_archive(raw: Path, rng: np.random.Generator) -> None:
    """Writes the four CSV files of Kaggle's archive after the labels' release."""
    num = NUM_TRAIN + NUM_TEST
    rows = [_comment(rng) for _ in range(num)]
    table = pd.DataFrame(rows, columns=["comment_text", *LABELS])
    table.insert(0, "id", hex_ids(num, 16, rng))
    test = table.tail(NUM_TEST).reset_index(drop=True)
    is_unscored = rng.random(NUM_TEST) < UNSCORED_FRAC
    solution = test.drop(columns="comment_text")
    solution.loc[is_unscored, list(LABELS)] = UNSCORED
    sample = test.filter(["id"]).assign(**dict.fromkeys(LABELS, 0.5))
    table.head(NUM_TRAIN).to_csv(raw / "train.csv", index=False)
    test.filter(["id", "comment_text"]).to_csv(raw / "test.csv", index=False)
    solution.to_csv(raw / "test_labels.csv", index=False)
    sample.to_csv(raw / "sample_submission.csv", index=False)


def from_archive(raw: Path, source: Source, rng: np.random.Generator) -> PreparedFiles:
    """Returns Kaggle's own split under new ids; rows without labels are not scored."""
    del source  # Both have a test file of their own.
    # A comment may be the word "null", which pandas would take for a gap.
    train = pd.read_csv(find_file(raw, "train.csv"), keep_default_na=False)
    test = pd.read_csv(find_file(raw, "test.csv"), keep_default_na=False)
    solution = pd.read_csv(find_file(raw, "test_labels.csv"))
    hidden = test.merge(solution, on="id", validate="one_to_one")
    ids = hex_ids(len(train) + len(hidden), 16, rng)
    train["id"], hidden["id"] = ids[: len(train)], ids[len(train) :]
    labels = hidden.filter(["id", *LABELS])
    is_scored = (labels[list(LABELS)] != UNSCORED).all(axis=1)
    half = np.where(rng.permutation(len(labels)) % 2, "selection", "test")
    labels[list(LABELS)] = labels[list(LABELS)].where(is_scored, 0)
    return PreparedFiles(
        public={
            "train.csv": csv_bytes(train),
            "test.csv": csv_bytes(hidden.filter(["id", "comment_text"])),
        },
        labels=labels.assign(part=np.where(is_scored, half, "unscored")),
        num_train=len(train),
    )


def _comment(rng: np.random.Generator) -> list[str | int]:
    """Returns the text of a comment and its six labels."""
    parts = [str(rng.choice(TALK)) for _ in range(1 + rng.binomial(3, 0.4))]
    is_toxic = rng.random() < TOXIC_FRAC
    kinds = [k for k, frac in KIND_FRACS.items() if is_toxic and rng.random() < frac]
    for kind in kinds:
        parts.append(str(rng.choice(PASSAGES[kind])))
    if is_toxic and (not kinds or rng.random() < 0.3):
        parts.append(str(rng.choice(PLAIN_TOXIC)))
    is_severe = is_toxic and len(kinds) >= 2 and rng.random() < 0.7
    text = _layout(rng, [_fill(rng, part) for part in parts])
    if is_severe and rng.random() < 0.8:
        text = text.upper() + "!!!"
    values = {"toxic": is_toxic, "severe_toxic": is_severe}
    values |= {kind: kind in kinds for kind in KIND_FRACS}
    flips = rng.random(len(LABELS)) < LABEL_NOISE
    labels = [int(values[n] != flip) for n, flip in zip(LABELS, flips, strict=True)]
    return [text, *labels]


def _fill(rng: np.random.Generator, part: str) -> str:
    words = [
        str(rng.choice(TOPICS)) if "{t}" in w else _disguise(rng, w)
        for w in part.split(" ")
    ]
    return " ".join(words)


def _disguise(rng: np.random.Generator, word: str) -> str:
    """Returns the word, at times with a doubled, starred or missing letter."""
    if len(word) < 4 or rng.random() > 0.2:
        return word
    place = int(rng.integers(1, len(word)))
    middle = ["*", word[place] * 2, ""][int(rng.integers(3))]
    return word[:place] + middle + word[place + 1 :]


def _layout(rng: np.random.Generator, parts: list[str]) -> str:
    """Returns the parts in random order, with the marks of a talk page."""
    order = rng.permutation(len(parts))
    ends = rng.choice([". ", ", ", "\n\n", " - "], len(parts))
    text = "".join(parts[i] + end for i, end in zip(order, ends, strict=True))
    if rng.random() < 0.15:
        text = f"== {rng.choice(TOPICS)} ==\n\n{text}"
    if rng.random() < 0.15:
        text = f'"\n{text}"'
    if rng.random() < 0.2:
        text += " {}.{}.{}.{}".format(*rng.integers(1, 255, 4))
    return text.strip()
