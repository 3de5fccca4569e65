"""Data of the task `cancer`: scikit-learn's breast cancer measurements."""

from typing import Any

import numpy as np
from sklearn import datasets

from mlagent_jax.env.task import PreparedData, split_rows

NUM_TRAIN = 180


def prepare(rng: np.random.Generator) -> PreparedData:
    """Returns 569 cases, 180 of them with labels for the agent."""
    data: Any = datasets.load_breast_cancer(as_frame=True)
    table = data.data.rename(columns=lambda name: name.replace(" ", "_"))
    # Columns in random order, so that neighbours do not measure the same thing.
    table = table[rng.permutation(table.columns.to_numpy())]
    table.insert(0, "malignant", 1 - data.target)
    table = table.iloc[rng.permutation(len(table))]
    return split_rows(table, NUM_TRAIN)
