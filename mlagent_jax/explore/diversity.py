"""Which ideas differ most, and a number for how much (paper A.3).

The paper keeps the 10 most diverse of a pool of at least 100 ideas. Its first version
takes those with the largest mean distance to the pool; its second takes farthest
points over three axes of meaning, which it does not name: ours are in `AXES`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import numpy as np

from mlagent_jax.explore.embeddings import Embed, Embeddings, embed_words, unit_rows

Method = Literal["farthest", "paper_v1", "paper_v2"]

_NUM_RANDOM_SETS: Final = 200
# What an idea can be about. A text is seen along an axis by its projection on the
# span of these phrases.
AXES: Final[Mapping[str, tuple[str, ...]]] = {
    "model": (
        "use a random forest",
        "use gradient boosting",
        "use a neural network",
        "use a linear model",
        "use a support vector machine",
        "use nearest neighbours",
    ),
    "data": (
        "scale the features",
        "add new features",
        "select columns",
        "augment the training data",
        "fill missing values",
        "reduce the dimensions",
    ),
    "training": (
        "tune the regularization",
        "average several models",
        "validate on held-out rows",
        "change the loss or transform the target",
        "train longer with a lower learning rate",
        "calibrate the predictions",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The chosen members of a pool and how far apart they are.

    Attributes:
      indices: positions in the pool, in the order of choice.
      mean_distance: mean cosine distance of all pairs of them, in [0, 2].
      random_mean_distance: the same, averaged over random sets of this size.
      pool_mean_distance: the same over the whole pool.
    """

    indices: tuple[int, ...]
    mean_distance: float
    random_mean_distance: float
    pool_mean_distance: float


def select_diverse(
    texts: Sequence[str],
    k: int,
    seed: int,
    *,
    method: Method = "farthest",
    embed: Embed = embed_words,
) -> Selection:
    """Returns `k` texts that are far from each other.

    Distances that are reported are between whole embeddings, whatever the method, so
    that methods can be compared.

    Args:
      texts: the pool; all different.
      k: how many to choose, in [1, len(texts)].
      seed: determines the first choice of farthest points and the random sets.
      method: how to choose, see `IdeasConfig.selection`.
      embed: texts to vectors.

    Raises:
      ValueError: `k` is out of range.
    """
    if not 1 <= k <= len(texts):
        raise ValueError(f"k = {k}: expected 1 to {len(texts)}, the size of the pool")
    rng = np.random.default_rng(seed)
    embeddings = embed(texts, seed)
    first = int(rng.integers(len(texts)))
    if method == "paper_v1":
        indices = largest_mean_distance(embeddings, k)
    elif method == "paper_v2":
        distances = np.mean(axis_distances(texts, seed, embed), axis=0)
        indices = farthest_by_distance(distances, k, first)
    else:
        indices = farthest_points(embeddings, k, first)
    random_distances = [
        mean_pairwise_distance(embeddings[rng.choice(len(texts), k, replace=False)])
        for _ in range(_NUM_RANDOM_SETS)
    ]
    return Selection(
        indices=indices,
        mean_distance=mean_pairwise_distance(embeddings[list(indices)]),
        random_mean_distance=float(np.mean(random_distances)),
        pool_mean_distance=mean_pairwise_distance(embeddings),
    )


def largest_mean_distance(embeddings: Embeddings, k: int) -> tuple[int, ...]:
    """Returns the `k` rows with the largest mean distance to all, largest first."""
    mean_distances = 1.0 - embeddings @ embeddings.mean(axis=0)
    order = np.argsort(-mean_distances, kind="stable")
    return tuple(int(i) for i in order[:k])


def axis_distances(texts: Sequence[str], seed: int, embed: Embed) -> list[Embeddings]:
    """Returns the cosine distances of all pairs along each axis of `AXES`.

    A text that says nothing along an axis is at distance 1 from those that do and at
    distance 0 from others that do not either.
    """
    anchors = [phrase for phrases in AXES.values() for phrase in phrases]
    # One call, since an embedding may depend on all texts it is given.
    vectors = embed([*texts, *anchors], seed)
    ideas, rest = vectors[: len(texts)], vectors[len(texts) :]
    found: list[Embeddings] = []
    for phrases in AXES.values():
        span, rest = rest[: len(phrases)], rest[len(phrases) :]
        # The right singular vectors of the phrases are an axis's orthonormal basis.
        _, sizes, basis = np.linalg.svd(span, full_matrices=False)
        basis = basis[sizes > 1e-9 * max(sizes[0], 1e-300)]
        views = ideas @ basis.T
        is_silent = np.linalg.norm(views, axis=1) < 1e-9
        distances = 1.0 - unit_rows(views) @ unit_rows(views).T
        distances[np.ix_(is_silent, is_silent)] = 0.0
        found.append(distances)
    return found


def farthest_points(embeddings: Embeddings, k: int, first: int) -> tuple[int, ...]:
    """Returns `k` rows, each the farthest from those chosen before it.

    Args:
      embeddings: unit vectors, one a row.
      k: how many rows to choose, at most all.
      first: the row to start with.
    """
    return _farthest(lambda i: 1.0 - embeddings @ embeddings[i], k, first)


def farthest_by_distance(distances: Embeddings, k: int, first: int) -> tuple[int, ...]:
    """Returns `k` members, each the farthest from those chosen before it.

    Args:
      distances: of all pairs, square and symmetric.
      k: how many to choose, at most all.
      first: the member to start with.
    """
    return _farthest(lambda i: distances[i].copy(), k, first)


def mean_pairwise_distance(embeddings: Embeddings) -> float:
    """Returns the mean cosine distance of all pairs of rows; 0.0 for one row."""
    num_rows = len(embeddings)
    if num_rows < 2:
        return 0.0
    upper = np.triu_indices(num_rows, 1)
    return float(np.mean((1.0 - embeddings @ embeddings.T)[upper]))


def _farthest(
    distances_from: Callable[[int], Embeddings], k: int, first: int
) -> tuple[int, ...]:
    """Returns farthest points; `distances_from(i)` is a new array."""
    chosen = [first]
    nearest = distances_from(first)
    while len(chosen) < k:
        nearest[chosen] = -np.inf
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, distances_from(chosen[-1]))
    return tuple(chosen)
