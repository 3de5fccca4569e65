"""Texts to unit vectors behind one interface: words, an endpoint, or a model's states.

The paper's embedding model is unknown. The default needs no download: TF-IDF of words
and word pairs, reduced by a truncated SVD (latent semantic analysis). Any function
from texts to rows of numbers can take its place, e.g. one that a program builds from
the policy's own hidden states.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from mlagent_jax.config import PolicyConfig
from mlagent_jax.errors import PolicyError
from mlagent_jax.policy.endpoint import Endpoint, shown

Embeddings = NDArray[np.float64]
# Texts and a seed to one vector a text, of any length; the seed may be ignored.
Embed = Callable[[Sequence[str], int], Embeddings]

_NUM_COMPONENTS: Final = 32
_TEXTS_A_REQUEST: Final = 64


def embed_words(texts: Sequence[str], seed: int) -> Embeddings:
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
    return unit_rows(vectors)


class EndpointEmbedder:
    """Vectors from `<base_url>/embeddings` of an OpenAI-compatible endpoint.

    Args:
      cfg: the endpoint and its model.
      first_wait_s: seconds before a second attempt, see `Endpoint`.

    Raises:
      ConfigError: base URL, model or key is missing.
    """

    def __init__(self, cfg: PolicyConfig, *, first_wait_s: float = 1.0) -> None:
        self._endpoint = Endpoint(cfg, first_wait_s=first_wait_s)
        self._model = cfg.model

    def __call__(self, texts: Sequence[str], seed: int) -> Embeddings:
        """Returns one unit vector a text.

        Raises:
          PolicyError: the endpoint failed, or gave vectors of different lengths.
        """
        rows: list[list[float]] = []
        for start in range(0, len(texts), _TEXTS_A_REQUEST):
            part = list(texts[start : start + _TEXTS_A_REQUEST])
            rows += self._endpoint.post(
                "embeddings",
                {"model": self._model, "input": part},
                read=functools.partial(_read_vectors, num_texts=len(part)),
                seed=seed,
            )
        lengths = sorted({len(row) for row in rows})
        if len(lengths) != 1:
            raise PolicyError(f"embeddings of different lengths: {lengths}")
        return unit_rows(np.asarray(rows, dtype=np.float64))

    def close(self) -> None:
        """Closes the connections."""
        self._endpoint.close()


def unit_rows(vectors: NDArray[Any]) -> Embeddings:
    """Returns the rows scaled to length 1; rows of zeros stay."""
    vectors = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float64).tiny)


def _read_vectors(answer: Mapping[str, Any], num_texts: int) -> list[list[float]]:
    """Returns the vectors of an answer in the order of the texts.

    Raises:
      PolicyError: it does not hold one finite vector for each text.
    """
    try:
        data = cast(list[Mapping[str, Any]], answer["data"])
        rows = {int(d["index"]): [float(x) for x in d["embedding"]] for d in data}
        ordered = [rows[i] for i in range(num_texts)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PolicyError(
            f"the answer has no data[i].embedding for {num_texts} texts: "
            f"{shown(answer)}"
        ) from error
    if not all(row and np.isfinite(row).all() for row in ordered):
        raise PolicyError("an embedding is empty or not finite")
    return ordered
