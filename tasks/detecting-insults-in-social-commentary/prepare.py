"""Data of `detecting-insults-in-social-commentary`: forum comments, some insulting."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from mlagent_jax.env.archive import find_file
from mlagent_jax.env.task_data import PreparedFiles, Source, csv_bytes

NUM_TRAIN = 900
NUM_TEST = 1_500
INSULT_FRAC = 0.27
LABEL_NOISE = 0.04
# Chance that a comment has a date.
DATED_FRAC = 0.82
TOPICS = (
    "game", "team", "president", "war", "taxes", "movie", "police", "phone", "church",
    "economy", "coach",
)  # fmt: skip
ADJECTIVES = (
    "stupid", "dumb", "pathetic", "sick", "lazy", "ignorant", "fat", "ugly",
    "worthless",
)  # fmt: skip
RUDE = (
    "idiot", "moron", "loser", "fool", "troll", "clown", "coward", "liar", "hypocrite",
    "jerk",
)  # fmt: skip
KIND = (
    "friend", "guy", "person", "fan", "reader", "voter", "neighbor", "genius", "expert",
    "citizen",
)  # fmt: skip
NEUTRAL = (
    "I think the {t} was better last year",
    "does anyone know when the {t} starts",
    "the {t} and the {t} have nothing in common",
    "my brother says the {t} is overrated, and you may agree",
    "well said, you are a {k} of the {t}",
    "the {t} on TV is a {r} but at least he tells the truth",
    "that {r} in the {t} should resign",
    "they let some {a} {r} run the {t}",
    "I was so {a} to believe the {t}, shame on me",
    "what the hell is going on with the {t}",
    "you can read about the {t} on the other thread",
)
INSULTS = (
    "you are a {a} {r}",
    "you {a} {r}, learn to read",
    "only a {r} like you could write that",
    "go back to your cave, {r}",
    "shut your mouth and take your {t} with you",
    "your mother must be proud of such a {a} {k}",
    "are you really that {a} or do you just act like it",
    "u r a {r} and so is everyone who likes you",
    "keep crying, {k}, nobody cares what you think",
)
# What a comment holds instead of plain characters: escapes stand as text.
MARKS = (
    "\\n",
    "\\xa0",
    "\\n\\n",
    "\\u2019",
    " http://www.example.com/{t}",
    " lol",
    "!!!",
)
_ESCAPE = re.compile(r"\\(?:N|XA0|U2019)")


def write_archive(raw: Path, rng: np.random.Generator) -> None:
    """Writes train.csv, test.csv, test_with_solutions.csv and the null submission."""
    num = NUM_TRAIN + NUM_TEST
    is_insult = rng.random(num) < INSULT_FRAC
    comments = [_comment(rng, bool(value)) for value in is_insult]
    labels = is_insult != (rng.random(num) < LABEL_NOISE)
    dates = [_date(rng) for _ in range(num)]
    table = pd.DataFrame(
        {"Insult": labels.astype(int), "Date": dates, "Comment": comments}
    )
    solution = table.tail(NUM_TEST)
    usage = np.where(rng.random(NUM_TEST) < 0.5, "PublicTest", "PrivateTest")
    table.head(NUM_TRAIN).to_csv(raw / "train.csv", index=False)
    solution.drop(columns="Insult").to_csv(raw / "test.csv", index=False)
    solution.assign(Usage=usage).to_csv(raw / "test_with_solutions.csv", index=False)
    solution.assign(Insult=0).to_csv(raw / "sample_submission_null.csv", index=False)


def from_archive(raw: Path, source: Source, rng: np.random.Generator) -> PreparedFiles:
    """Returns Kaggle's own split in random order.

    Comments have no id but their text, so one that occurs twice in the test file, or
    in the training file too, is dropped from the test file.
    """
    del source  # Both have a test file of their own.
    train = pd.read_csv(find_file(raw, "train.csv"))
    hidden = pd.read_csv(find_file(raw, "test_with_solutions.csv"))
    hidden = hidden.drop_duplicates("Comment").drop(columns="Usage")
    hidden = hidden[~hidden["Comment"].isin(train["Comment"])]
    hidden = hidden.iloc[rng.permutation(len(hidden))]
    return PreparedFiles(
        public={
            "train.csv": csv_bytes(train.iloc[rng.permutation(len(train))]),
            "test.csv": csv_bytes(hidden.drop(columns="Insult")),
            "sample_submission_null.csv": csv_bytes(hidden.assign(Insult=0)),
        },
        labels=hidden.filter(["Comment", "Insult"]),
        num_train=len(train),
    )


def _comment(rng: np.random.Generator, is_insult: bool) -> str:
    """Returns a comment in quotes; rude words about others are no insult."""
    parts = [str(rng.choice(NEUTRAL)) for _ in range(rng.binomial(2, 0.5))]
    parts.append(str(rng.choice(INSULTS if is_insult else NEUTRAL)))
    rng.shuffle(parts)
    text = ". ".join(_fill(rng, part) for part in parts)
    for mark in rng.choice(MARKS, rng.binomial(3, 0.3)):
        place = text.find(" ", int(rng.integers(len(text))))
        mark = _fill(rng, str(mark))
        text = text + mark if place < 0 else text[:place] + mark + text[place:]
    if rng.random() < 0.08:
        text = _ESCAPE.sub(lambda match: match[0].lower(), text.upper())
    return f'"{text}"'


def _fill(rng: np.random.Generator, part: str) -> str:
    words = {"t": TOPICS, "a": ADJECTIVES, "r": RUDE, "k": KIND}
    for slot, pool in words.items():
        while f"{{{slot}}}" in part:
            word = _disguise(rng, str(rng.choice(pool)))
            part = part.replace(f"{{{slot}}}", word, 1)
    return part


def _disguise(rng: np.random.Generator, word: str) -> str:
    """Returns the word, at times with a doubled or starred letter."""
    place = int(rng.integers(1, len(word)))
    chance = rng.random()
    if chance < 0.15:
        return word[:place] + word[place - 1] + word[place:]
    if chance < 0.25:
        return word[:place] + "*" + word[place + 1 :]
    return word


def _date(rng: np.random.Generator) -> str | None:
    if rng.random() > DATED_FRAC:
        return None
    day = pd.Timestamp("2012-03-01") + pd.Timedelta(seconds=int(rng.integers(10**7)))
    return day.strftime("%Y%m%d%H%M%SZ")
