"""Data of `feedback-prize-ELL`: essays of pupils, or essays made up of word lists."""

from pathlib import Path

import numpy as np
import pandas as pd

from mlagent_jax.env.archive import find_file
from mlagent_jax.env.task_data import PreparedFiles, Source, csv_bytes

# Hidden share; real: MLAgentBench's 2 % (79 essays).
TEST_FRAC = {"real": 0.02, "lookalike": 0.7}
SPLIT_SEED = 42
NUM_ESSAYS = 900
TARGETS = ("cohesion", "syntax", "vocabulary", "phraseology", "grammar", "conventions")
PLAIN = tuple(
    [
        "school",
        "people",
        "think",
        "good",
        "work",
        "day",
        "time",
        "students",
        "help",
        "like",
        "make",
        "want",
        "friend",
        "home",
        "learn",
        "teacher",
        "life",
        "thing",
        "class",
        "many",
    ]
)
RARE = tuple(
    [
        "perspective",
        "independent",
        "responsibility",
        "opportunity",
        "environment",
        "consequently",
        "beneficial",
        "technology",
        "achieve",
        "experience",
        "community",
        "individual",
    ]
)
LINKS = ("however", "therefore", "for example", "in addition", "because", "finally")
SLIPS = {"people": "peple", "think": "tink", "because": "becuase", "school": "shcool"}


def write_archive(raw: Path, rng: np.random.Generator) -> None:
    """Writes train.csv, test.csv and the sample; ability shows in words and slips."""
    n = NUM_ESSAYS
    ability = rng.normal(0, 1, n)
    skills = 0.75 * ability[:, None] + 0.55 * rng.normal(0, 1, (n, 6))
    texts = [_essay(skill, rng) for skill in skills]
    noisy = 3.1 + 0.62 * skills + rng.normal(0, 0.15, skills.shape)
    scores = np.clip((2 * noisy).round() / 2, 1, 5)
    hexes = rng.permutation(16**6)[:n]
    table = pd.DataFrame({"text_id": [f"{h:06X}{h % 251:06X}" for h in hexes]})
    table["full_text"] = texts
    table[list(TARGETS)] = scores
    # Kaggle's own test rows have no labels; nothing is made from them.
    table.to_csv(raw / "train.csv", index=False)
    others = table.head(3).assign(
        text_id=["0000C359D63E", "000BAD50D026", "00367BB2546B"]
    )
    others[["text_id", "full_text"]].to_csv(raw / "test.csv", index=False)
    sample = others[["text_id"]].assign(**dict.fromkeys(TARGETS, 3.0))
    sample.to_csv(raw / "sample_submission.csv", index=False)


def from_archive(raw: Path, source: Source, rng: np.random.Generator) -> PreparedFiles:
    """Returns Kaggle's training essays: shuffled with a seed, the last ones hidden."""
    del rng  # The ids are Kaggle's hashes and the rows are shuffled below.
    table = pd.read_csv(find_file(raw, "train.csv"))
    shuffled = table.sample(frac=1, random_state=SPLIT_SEED)
    num_train = int((1 - TEST_FRAC[source]) * len(table))
    train, test = shuffled.head(num_train), shuffled.tail(len(table) - num_train)
    return PreparedFiles(
        public={
            "train.csv": csv_bytes(train),
            "test.csv": csv_bytes(test.filter(["text_id", "full_text"])),
        },
        labels=test.filter(["text_id", *TARGETS]),
        num_train=num_train,
    )


def _essay(skill: np.ndarray, rng: np.random.Generator) -> str:
    """Returns a text whose words, links, slips and stops follow six skills."""
    cohesion, syntax, vocabulary, phrases, grammar, conventions = 1 / (
        1 + np.exp(-skill)
    )
    sentences: list[str] = []
    for _ in range(rng.integers(6, 13)):
        num_words = max(4, round(rng.normal(6 + 9 * syntax, 2)))
        words = [
            str(rng.choice(RARE if rng.random() < 0.35 * vocabulary else PLAIN))
            for _ in range(num_words)
        ]
        if rng.random() < 0.8 * cohesion:
            words.insert(0, str(rng.choice(LINKS)))
        if rng.random() < 0.6 * (1 - phrases):
            words.insert(1, words[0])
        words = [
            SLIPS.get(w, w) if rng.random() < 1 - conventions else w for w in words
        ]
        if rng.random() < 0.7 * (1 - grammar):
            words.append("is are")
        is_right = rng.random() < 0.25 + 0.7 * conventions
        text = " ".join(words)
        sentences.append(text.capitalize() + ". " if is_right else text + " ")
    middle = len(sentences) // 2
    return (
        "".join(sentences[:middle]).strip()
        + "\n\n"
        + "".join(sentences[middle:]).strip()
    )
