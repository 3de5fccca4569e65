"""Data of the task `essays`: generated pupils' texts with three marks each."""

import numpy as np
import pandas as pd

from mlagent_jax.env.task import PreparedData, split_rows

NUM_TRAIN = 500
NUM_ROWS = 1_700
NUM_SENTENCES = 5
LINKS = (
    "However",
    "Therefore",
    "For example",
    "In contrast",
    "Moreover",
    "As a result",
)
PLAIN = ("good", "bad", "big", "nice", "many", "fun", "hard", "new", "thing", "stuff")
RICH = (
    "remarkable", "dreadful", "substantial", "delightful", "numerous", "absorbing",
    "demanding", "unprecedented", "phenomenon", "circumstance", "inevitable", "subtle",
)  # fmt: skip
NOUNS = ("school", "phone", "teacher", "city", "friend", "book", "game", "summer")
VERBS = ("helps", "changes", "shows", "needs", "makes", "brings")
ENDINGS = ("students", "people", "families", "everyone", "our town", "my class")


def prepare(rng: np.random.Generator) -> PreparedData:
    """Returns texts whose links, words and slips follow three hidden abilities."""
    common = rng.normal(0, 0.6, (NUM_ROWS, 1))
    ability = common + rng.normal(0, 0.8, (NUM_ROWS, 3))
    marks = np.clip(np.round(2 * (3 + ability)) / 2, 1, 5)
    texts = [_write(rng, *row) for row in 1 / (1 + np.exp(-1.6 * ability))]
    table = pd.DataFrame(
        {
            "text": texts,
            "cohesion": marks[:, 0],
            "vocabulary": marks[:, 1],
            "grammar": marks[:, 2],
        }
    )
    return split_rows(table, NUM_TRAIN)


def _write(
    rng: np.random.Generator, cohesion: float, vocabulary: float, grammar: float
) -> str:
    sentences: list[str] = []
    for _ in range(NUM_SENTENCES):
        words = ["the", rng.choice(NOUNS), rng.choice(VERBS)]
        for _ in range(3):
            is_rich = rng.random() < vocabulary
            words.append(str(rng.choice(RICH if is_rich else PLAIN)))
        words += ["for", *rng.choice(ENDINGS).split()]
        if rng.random() < cohesion:
            words = [f"{rng.choice(LINKS)},", *words]
        else:
            words[0] = "The"
        if rng.random() > grammar:
            words = _spoil(rng, words)
        sentences.append(" ".join(map(str, words)) + ".")
    return " ".join(sentences)


def _spoil(rng: np.random.Generator, words: list[str]) -> list[str]:
    """Returns the words with one slip: lost capital, doubled or swapped letter."""
    place = int(rng.integers(0, len(words)))
    word = str(words[place])
    slip = int(rng.integers(0, 3))
    if slip == 0:
        return [str(words[0]).lower(), *words[1:]]
    middle = max(1, len(word) // 2)
    double = word[:middle] + word[middle - 1] + word[middle:]
    swapped = (
        word[: middle - 1] + word[middle - 1 : middle + 1][::-1] + word[middle + 1 :]
    )
    return [*words[:place], double if slip == 1 else swapped, *words[place + 1 :]]
