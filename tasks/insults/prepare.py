"""Data of the task `insults`: generated forum comments, some of them rude."""

import numpy as np
import pandas as pd

from mlagent_jax.env.task import PreparedData, split_rows

NUM_TRAIN = 600
NUM_ROWS = 3_400
TOPICS = ("match", "movie", "phone", "recipe", "song", "trip", "car", "garden")
RUDE = ("fool", "clown", "moron", "loser", "troll", "idiot", "liar", "bigot")
KIND = ("friend", "mate", "folks", "captain", "neighbor", "champ", "doc", "team")
OPENERS = ("honestly", "well", "look", "again", "come on", "ok", "hey", "so")
VIEWS = ("was great", "was dull", "cost too much", "made my day", "is overrated")
CLOSERS = ("go away", "get lost", "shut up", "grow up")
POLITE = ("take care", "good luck", "see you", "thanks a lot")


def prepare(rng: np.random.Generator) -> PreparedData:
    """Returns comments; an insult addresses someone, a mention of a rude word none."""
    is_insult = rng.integers(0, 2, NUM_ROWS)
    texts = [_write(rng, bool(label)) for label in is_insult]
    table = pd.DataFrame({"text": texts, "insult": is_insult})
    return split_rows(table, NUM_TRAIN)


def _write(rng: np.random.Generator, is_insult: bool) -> str:
    topic, other = rng.choice(TOPICS, 2, replace=False)
    parts = [f"{rng.choice(OPENERS)} the {topic} {rng.choice(VIEWS)}"]
    rude, kind = str(rng.choice(RUDE)), str(rng.choice(KIND))
    word = rude if rng.random() < 0.75 else kind
    verb = rng.choice(["you are a", "you sound like a"])
    mention = rng.choice(["my boss is a", "the host was a"])
    # The same words occur in both classes; who is meant makes the difference.
    parts.append(f"{verb if is_insult else mention} {_disguise(rng, word)}")
    if rng.random() < 0.5:
        is_rude_end = rng.random() < (0.7 if is_insult else 0.25)
        parts.append(str(rng.choice(CLOSERS if is_rude_end else POLITE)))
    if rng.random() < 0.6:
        parts.append(f"i liked the {other} and you {rng.choice(VIEWS)[4:]} too")
    if rng.random() < 0.12:
        parts[1] = f"{mention if is_insult else verb} {_disguise(rng, word)}"
    return ", ".join(str(parts[i]) for i in rng.permutation(len(parts)))


def _disguise(rng: np.random.Generator, word: str) -> str:
    """Returns the word, sometimes with a doubled or starred letter."""
    place = int(rng.integers(1, len(word)))
    chance = rng.random()
    if chance < 0.25:
        return word[:place] + word[place - 1] + word[place:]
    if chance < 0.45:
        return word[:place] + "*" + word[place + 1 :]
    return word
