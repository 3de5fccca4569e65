"""Data of `learning-agency-lab-automated-essay-scoring-2`: essays scored 1 to 6."""

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

NUM_ROWS = 1_300
# Cumulative shares of the scores 1 to 5; few essays get a 6.
SCORE_QUANTILES = (0.08, 0.34, 0.68, 0.90, 0.97)
SUBJECTS = (
    ("cars that drive themselves", "the driver", "a road without an accident"),
    ("the trip to Venus", "the crew", "a planet hotter than an oven"),
    ("a town without cars", "the mayor", "a street where children play"),
    ("reading faces by computer", "the teacher", "a lesson for every mood"),
    ("voting by electors", "the voter", "an election that feels fair"),
)
OPENINGS = (
    "I am going to tell you about {s}",
    "Have you ever thought about {s}",
    "In the article the author writes about {s}",
    "Many people argue over {s}",
    "The debate about {s} is older than it seems",
)
WEAK = (
    "{p} is good and it is nice", "it is bad because it is bad",
    "people like {s} a lot", "i think it is cool", "you can do many stuff with it",
    "{p} said so in the text", "that is why i like it",
)  # fmt: skip
SOLID = (
    "for example, {p} can save time and money every day",
    "the author says that {s} would change our lives",
    "another reason is that {p} needs less fuel",
    "some people disagree because {s} costs too much",
    "in paragraph three {p} explains how it works",
    "this shows that {s} could help the community",
)  # fmt: skip
STRONG = (
    "although critics fear {s}, the evidence points to {e}",
    "nevertheless, the author undermines this claim by ignoring {e}",
    "consequently, {p} must weigh the benefits against the responsibility",
    "this distinction matters, since {e} depends on more than technology",
    "by conceding the risk, the author makes {s} considerably more convincing",
)  # fmt: skip
CLOSINGS = (
    "That is all I have to say",
    "So that is why {s} matters",
    "In conclusion, {s} is worth the effort",
    "Ultimately, {p} decides whether we see {e}",
)


def write_archive(raw: Path, rng: np.random.Generator) -> None:
    """Writes train.csv, test.csv and sample_submission.csv as Kaggle ships them.

    Better essays are longer, argue more and have fewer mistakes; the readers' scores
    are noisy.
    """
    skill = rng.normal(0, 1, NUM_ROWS)
    noisy = skill + rng.normal(0, 0.3, NUM_ROWS)
    score = 1 + np.searchsorted(np.quantile(noisy, SCORE_QUANTILES), noisy)
    table = pd.DataFrame(
        {
            "essay_id": hex_ids(NUM_ROWS, 7, rng),
            "full_text": [_essay(rng, float(value)) for value in skill],
            "score": score,
        }
    )
    table.to_csv(raw / "train.csv", index=False)
    shown = table.head(3)
    shown.drop(columns="score").to_csv(raw / "test.csv", index=False)
    shown.filter(["essay_id", "score"]).assign(score=3).to_csv(
        raw / "sample_submission.csv", index=False
    )


def from_archive(raw: Path, source: Source, rng: np.random.Generator) -> PreparedFiles:
    """Returns the essays, split as MLE-bench splits them, under new ids."""
    # A text may be the word "null", which pandas would take for a gap.
    table = pd.read_csv(find_file(raw, "train.csv"), keep_default_na=False)
    table["essay_id"] = hex_ids(len(table), 7, rng)
    train, hidden = hold_out(table, TEST_FRAC[source])
    return PreparedFiles(
        public={
            "train.csv": csv_bytes(train),
            "test.csv": csv_bytes(hidden.drop(columns="score")),
        },
        labels=hidden.filter(["essay_id", "score"]),
        num_train=len(train),
    )


def _essay(rng: np.random.Generator, skill: float) -> str:
    """Returns paragraphs of sentences whose level, length and spelling show skill."""
    subject, person, end = SUBJECTS[rng.integers(len(SUBJECTS))]
    num = int(np.clip(np.round(9 + 2.2 * skill + rng.normal(0, 2.5)), 4, 18))
    sentences = [_level(OPENINGS, skill, rng)]
    for _ in range(num):
        level = skill + rng.normal(0, 1.0)
        pool = WEAK if level < -0.5 else SOLID if level < 0.9 else STRONG
        sentences.append(str(rng.choice(pool)))
    sentences.append(_level(CLOSINGS, skill, rng))
    num_breaks = int(np.clip(np.round(1 + skill + rng.normal(0, 0.8)), 0, 4))
    breaks = set(rng.choice(np.arange(1, len(sentences)), num_breaks).tolist())
    text = ""
    for i, sentence in enumerate(sentences):
        sentence = sentence.format(s=subject, p=person, e=end)
        sentence = _misspell(sentence, 0.06 * np.exp(-0.7 * skill), rng)
        gap = "" if i == 0 else "\n\n" if i in breaks else " "
        is_careful = rng.random() < 0.75 + 0.2 * skill
        text += gap + (sentence[:1].upper() + sentence[1:] if is_careful else sentence)
        text += "." if is_careful else ","
    return text


def _level(pool: tuple[str, ...], skill: float, rng: np.random.Generator) -> str:
    """Returns a sentence from further back in the pool for a higher skill."""
    middle = len(pool) / 2
    place = round(middle + middle * 0.6 * skill + rng.normal(0, 1))
    return pool[min(max(place, 0), len(pool) - 1)]


def _misspell(text: str, rate: float, rng: np.random.Generator) -> str:
    """Returns the text with a share `rate` of its longer words misspelled."""
    words = text.split(" ")
    for i, word in enumerate(words):
        if len(word) > 3 and rng.random() < rate:
            place = int(rng.integers(1, len(word) - 1))
            swapped = word[place + 1] + word[place]
            words[i] = word[:place] + swapped + word[place + 2 :]
    return " ".join(words)
