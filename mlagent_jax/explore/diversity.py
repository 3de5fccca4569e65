"""Which ideas differ most: embedding, farthest-point selection, a number for it.

The paper keeps the 10 most diverse of a pool of at least 100 ideas (A.3); its
embedding model is unknown. Ours needs no download: TF-IDF of words and word pairs,
reduced by a truncated SVD (latent semantic analysis).
"""

import dataclasses
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

Embeddings = NDArray[np.float64]

_NUM_COMPONENTS: Final = 32
_NUM_RANDOM_SETS: Final = 200


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


def select_diverse(texts: Sequence[str], k: int, seed: int) -> Selection:
    """Returns `k` texts that are far from each other, by farthest-point selection.

    Args:
      texts: the pool; all different.
      k: how many to choose, in [1, len(texts)].
      seed: determines the first choice and the random sets.

    Raises:
      ValueError: `k` is out of range.
    """
    if not 1 <= k <= len(texts):
        raise ValueError(f"k = {k}: expected 1 to {len(texts)}, the size of the pool")
    rng = np.random.default_rng(seed)
    embeddings = embed(texts, seed)
    indices = farthest_points(embeddings, k, first=int(rng.integers(len(texts))))
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


def embed(texts: Sequence[str], seed: int) -> Embeddings:
    """Returns one unit vector a text; texts that share words point alike."""
    tfidf = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b"
    ).fit_transform(texts)
    # The randomized solver wants fewer components than either side of the matrix.
    num_components = min(_NUM_COMPONENTS, *(side - 1 for side in tfidf.shape))
    if num_components < 1:
        vectors = tfidf.toarray()
    else:
        svd = TruncatedSVD(num_components, random_state=seed)
        vectors = svd.fit_transform(tfidf)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float64).tiny)


def farthest_points(embeddings: Embeddings, k: int, first: int) -> tuple[int, ...]:
    """Returns `k` rows, each the farthest from those chosen before it.

    Args:
      embeddings: unit vectors, one a row.
      k: how many rows to choose, at most all.
      first: the row to start with.
    """
    chosen = [first]
    nearest = 1.0 - embeddings @ embeddings[first]
    while len(chosen) < k:
        nearest[chosen] = -np.inf
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, 1.0 - embeddings @ embeddings[chosen[-1]])
    return tuple(chosen)


def mean_pairwise_distance(embeddings: Embeddings) -> float:
    """Returns the mean cosine distance of all pairs of rows; 0.0 for one row."""
    num_rows = len(embeddings)
    if num_rows < 2:
        return 0.0
    upper = np.triu_indices(num_rows, 1)
    return float(np.mean((1.0 - embeddings @ embeddings.T)[upper]))
