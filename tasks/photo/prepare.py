"""Data of the task `photo`: noisy patches of the two photographs in scikit-learn."""

import numpy as np
import pandas as pd
from sklearn import datasets

from mlagent_jax.env.task import PreparedData

NUM_TRAIN = 700
NUM_ROWS = 2_700
SIZE = 7
NOISE_STD = 24.0


def prepare(rng: np.random.Generator) -> PreparedData:
    """Returns noisy 7 x 7 patches with the clean brightness of their centre.

    Training patches come from the left half of the photographs, hidden ones from
    the right half, so that no pixel occurs in both.
    """
    photos = [image.mean(axis=2) for image in datasets.load_sample_images().images]
    half = photos[0].shape[1] // 2
    train = _patches(rng, [photo[:, :half] for photo in photos], NUM_TRAIN)
    test = _patches(rng, [photo[:, half:] for photo in photos], NUM_ROWS - NUM_TRAIN)
    return PreparedData(train=train, test=test)


def _patches(
    rng: np.random.Generator, photos: list[np.ndarray], num: int
) -> pd.DataFrame:
    rows: list[np.ndarray] = []
    centre = SIZE // 2
    for _ in range(num):
        photo = photos[rng.integers(len(photos))]
        top = rng.integers(photo.shape[0] - SIZE)
        left = rng.integers(photo.shape[1] - SIZE)
        clean = photo[top : top + SIZE, left : left + SIZE]
        noisy = clean + rng.normal(0, NOISE_STD, clean.shape)
        rows.append(np.concatenate([[clean[centre, centre]], noisy.ravel()]))
    columns = ["clean", *(f"p{i}" for i in range(SIZE * SIZE))]
    table = pd.DataFrame(np.stack(rows), columns=columns)
    return table.round(0).clip(0, 255).astype(int)
