"""Data of `spooky-author-identification`: sentences of three horror authors."""

from pathlib import Path

import numpy as np
import pandas as pd

from mlagent_jax.env.archive import find_file
from mlagent_jax.env.task_data import PreparedFiles, Source, csv_bytes, hold_out

TEST_FRAC = {"real": 0.1, "lookalike": 0.6}

NUM_ROWS = 2_000
AUTHORS = ("EAP", "HPL", "MWS")
SHARES = (0.403, 0.288, 0.309)
# Share of slots filled from the author's own words; the rest comes from all three.
OWN_FRAC = 0.45
NOUNS = {
    "EAP": "chamber lattice cipher balloon portrait pendulum reasoning tomb visage cat",
    "HPL": "cult abyss idol tentacle dream gulf legend attic professor cellar",
    "MWS": "heart father cottage misery friend mountain tear cousin glacier plague",
}
ADJECTIVES = {
    "EAP": "singular profound ingenious ghastly trivial minute peculiar grotesque",
    "HPL": "nameless cyclopean ancient hideous forgotten daemoniac elder monstrous",
    "MWS": "beloved gentle wretched sublime desolate tender miserable benevolent",
}
VERBS = {
    "EAP": "perceived observed endeavored remarked calculated shrieked demanded",
    "HPL": "whispered glimpsed shambled dreamed uncovered fled recoiled",
    "MWS": "lamented loved beheld wept wandered trusted consoled",
}
PLACES = {
    "EAP": ("in the Rue Morgue", "upon the bed", "at the masquerade"),
    "HPL": ("beneath Arkham", "in the abandoned church", "among the black hills"),
    "MWS": ("by the lake of Geneva", "amid the snow", "in our native village"),
}
LINKS = {
    "EAP": ("in short", "to be sure", "upon the whole", "of course"),
    "HPL": ("in the end", "that night", "long afterward", "without a sound"),
    "MWS": ("alas", "with tears", "in my despair", "for a moment"),
}
FRAMES = (
    "{L}, the {a} {n} {v} the {n} {p}",
    "I {v} a {a} {n}, and the {n} {v} {p}",
    "it was the {n} which {v} the {a} {n}; {l}, I {v} {p}",
    "{p} there {v} a {n} so {a} that no {n} {v}",
    "my {n} {v}, {l}, and the {a} {n} {v} me",
    "never had the {n} of the {a} {n} {v} {p}",
)


def write_archive(raw: Path, rng: np.random.Generator) -> None:
    """Writes train.csv, test.csv and sample_submission.csv as Kaggle ships them."""
    author = rng.choice(AUTHORS, NUM_ROWS, p=SHARES)
    table = pd.DataFrame(
        {
            "id": _ids(NUM_ROWS, rng),
            "text": [_text(rng, str(name)) for name in author],
            "author": author,
        }
    )
    table.to_csv(raw / "train.csv", index=False)
    unlabeled = table.head(5).drop(columns="author")
    unlabeled.to_csv(raw / "test.csv", index=False)
    shares = dict(zip(AUTHORS, SHARES, strict=True))
    unlabeled.filter(["id"]).assign(**shares).to_csv(
        raw / "sample_submission.csv", index=False
    )


def from_archive(raw: Path, source: Source, rng: np.random.Generator) -> PreparedFiles:
    """Returns the sentences, split as MLE-bench splits them, under new ids."""
    # A text may be the word "null", which pandas would take for a gap.
    table = pd.read_csv(find_file(raw, "train.csv"), keep_default_na=False)
    table["id"] = _ids(len(table), rng)
    train, hidden = hold_out(table, TEST_FRAC[source])
    columns = {name: (hidden["author"] == name).astype(float) for name in AUTHORS}
    return PreparedFiles(
        public={
            "train.csv": csv_bytes(train),
            "test.csv": csv_bytes(hidden.drop(columns="author")),
        },
        labels=hidden.filter(["id"]).assign(**columns),
        num_train=len(train),
    )


def _ids(num: int, rng: np.random.Generator) -> list[str]:
    return [f"id{number:05d}" for number in rng.permutation(num)]


def _text(rng: np.random.Generator, author: str) -> str:
    """Returns one to three clauses in a style that three authors share in part."""
    clauses = [_clause(rng, author) for _ in range(1 + rng.binomial(2, 0.4))]
    semicolons = 0.3 if author == "HPL" else 0.6
    text = ("; " if rng.random() < semicolons else ", and ").join(clauses)
    if author == "EAP" and rng.random() < 0.15:
        text = f'"{text}," said Dupin'
    return text[:1].upper() + text[1:] + "."


def _clause(rng: np.random.Generator, author: str) -> str:
    frame = str(rng.choice(FRAMES))
    words: list[str] = []
    for word in frame.replace("}", "{").split("{"):
        match word:
            case "n" | "a" | "v":
                pool = {"n": NOUNS, "a": ADJECTIVES, "v": VERBS}[word]
                words.append(str(rng.choice(pool[_source(rng, author)].split())))
            case "l" | "L" | "p":
                pool = PLACES if word == "p" else LINKS
                words.append(str(rng.choice(pool[_source(rng, author)])))
            case _:
                words.append(word)
    return "".join(words)


def _source(rng: np.random.Generator, author: str) -> str:
    """Returns whose word comes next."""
    return author if rng.random() < OWN_FRAC else str(rng.choice(AUTHORS))
