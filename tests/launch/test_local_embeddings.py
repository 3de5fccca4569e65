"""Embeddings from hidden states: independent of padding and of the company kept."""

import jax
import numpy as np
import pytest

from launch.local_embeddings import make_embedder
from mlagent_jax.config import ModelConfig
from mlagent_jax.explore.diversity import select_diverse
from mlagent_jax.model import qwen2

CFG = ModelConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    compute_dtype="float32",
)


class Letters:
    """One token a character."""

    def encode(self, text):
        return [ord(c) % 64 for c in text]


@pytest.fixture(scope="module")
def model():
    return qwen2.make_graphdef(CFG), qwen2.init_params(CFG, jax.random.key(0))


@pytest.fixture(scope="module")
def embed(model):
    return make_embedder(*model, Letters())


def test_a_vector_is_the_mean_of_a_texts_own_hidden_states(model, embed):
    graphdef, params = model
    tokens_BT = np.asarray([Letters().encode("use a forest")])
    positions_BT = np.arange(tokens_BT.shape[1])[None]
    hidden_BTD = qwen2.forward(graphdef, params, tokens_BT, positions_BT)
    expected = np.asarray(hidden_BTD, np.float64).mean(axis=(0, 1))
    found = embed(["a", "use a forest", "x" * 100], 0)[1]
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)


def test_texts_are_embedded_alone_or_together_alike(embed):
    texts = [f"idea {'long ' * i}{i}" for i in range(20)]
    together = embed(texts, 0)
    assert together.shape == (20, 16)
    np.testing.assert_allclose(embed(texts[7:8], 1)[0], together[7], atol=1e-5)
    assert len(set(select_diverse(texts, 5, 0, embed=embed).indices)) == 5
