"""Data of the task `digits`: scikit-learn's scanned digits, split at random."""

import numpy as np
import pandas as pd
from sklearn import datasets

from mlagent_jax.env.task import PreparedData, split_rows

NUM_TRAIN = 500


def prepare(rng: np.random.Generator) -> PreparedData:
    """Returns the 1,797 images, 500 of them with labels for the agent."""
    images, labels = datasets.load_digits(return_X_y=True)
    columns = [f"p{i}" for i in range(images.shape[1])]
    table = pd.DataFrame(images.astype(int), columns=columns)
    table.insert(0, "label", labels)
    table = table.iloc[rng.permutation(len(table))]
    return split_rows(table, NUM_TRAIN)
