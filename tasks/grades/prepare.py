"""Data of the task `grades`: generated lab reports with a grade from 1 to 6."""

import numpy as np
import pandas as pd

from mlagent_jax.env.task import PreparedData, split_rows

NUM_TRAIN = 600
NUM_ROWS = 2_000
WEAK = ("it worked", "we did stuff", "it was ok", "i think so", "something happened")
SOLID = (
    "we measured the mass twice", "the sample was heated slowly",
    "the table lists all values", "the error was two percent",
    "we repeated the trial",
)  # fmt: skip
STRONG = (
    "this contradicts our hypothesis", "the uncertainty dominates the residual",
    "a control group excludes that cause", "the slope agrees with theory",
    "we therefore propose a refined model",
)  # fmt: skip


def prepare(rng: np.random.Generator) -> PreparedData:
    """Returns reports; better ones are longer, more exact and argue more."""
    skill = rng.normal(0, 1, NUM_ROWS)
    texts = [_write(rng, float(value)) for value in skill]
    noisy = skill + rng.normal(0, 0.25, NUM_ROWS)
    cuts = np.quantile(noisy, [0.10, 0.30, 0.55, 0.80, 0.93])
    table = pd.DataFrame({"text": texts, "grade": 1 + np.searchsorted(cuts, noisy)})
    return split_rows(table, NUM_TRAIN)


def _write(rng: np.random.Generator, skill: float) -> str:
    sentences: list[str] = []
    for _ in range(int(np.clip(np.round(6 + 1.5 * skill + rng.normal(0, 1.5)), 3, 11))):
        level = skill + rng.normal(0, 1.0)
        pool = WEAK if level < -0.5 else SOLID if level < 0.8 else STRONG
        sentence = str(rng.choice(pool))
        if rng.random() < 0.25 - 0.08 * skill:
            sentence = sentence.replace("e", "", 1)
        sentences.append(sentence)
    return ". ".join(sentences) + "."
