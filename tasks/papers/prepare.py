"""Data of the task `papers`: a generated citation graph with word counts."""

import numpy as np
import pandas as pd

from mlagent_jax.env.task import PreparedData, split_rows

NUM_TRAIN = 500
NUM_ROWS = 2_000
NUM_FIELDS = 6
NUM_WORDS = 24
NUM_CITATIONS = 3
SAME_FIELD_FRAC = 0.75


def prepare(rng: np.random.Generator) -> PreparedData:
    """Returns papers of six fields that mostly cite papers of their own field."""
    n = NUM_ROWS
    field = rng.integers(0, NUM_FIELDS, n)
    rates = rng.gamma(2.0, 0.35, (NUM_FIELDS, NUM_WORDS))
    words = rng.poisson(rates[field])
    columns = [f"w{i}" for i in range(NUM_WORDS)]
    table = pd.DataFrame(words, columns=columns)
    table.insert(0, "field", field)
    citing = np.repeat(np.arange(n), NUM_CITATIONS)
    cited = np.empty_like(citing)
    is_same = rng.random(len(citing)) < SAME_FIELD_FRAC
    for number, source in enumerate(citing):
        pool = np.flatnonzero(field == field[source]) if is_same[number] else n
        cited[number] = rng.choice(pool)
    pairs = np.stack([citing, cited], axis=1)[citing != cited]
    edges = pd.DataFrame(np.unique(pairs, axis=0), columns=["citing", "cited"])
    return split_rows(table, NUM_TRAIN, links={"edges.csv": edges})
