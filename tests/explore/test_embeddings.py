"""Embeddings from an endpoint: order, batches, and every broken answer."""

import json

import numpy as np
import pytest

from mlagent_jax.config import PolicyConfig
from mlagent_jax.errors import PolicyError
from mlagent_jax.explore.diversity import select_diverse
from mlagent_jax.explore.embeddings import EndpointEmbedder, unit_rows
from tests.policy.test_api import KEY, Endpoint


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    server = Endpoint()
    yield server
    server.close()


def make_embedder(endpoint):
    cfg = PolicyConfig(
        kind="api", base_url=endpoint.url, model="e", api_key_env="TEST_KEY"
    )
    return EndpointEmbedder(cfg, first_wait_s=0.001)


def vectors(*rows):
    return {"data": [{"index": i, "embedding": list(r)} for i, r in enumerate(rows)]}


def test_vectors_are_put_in_the_order_of_the_texts_and_have_length_one(endpoint):
    answer = vectors((3.0, 4.0), (0.0, 2.0))
    answer["data"].reverse()
    endpoint.answers = [(200, {}, answer)]
    found = make_embedder(endpoint)(["a", "b"], seed=0)
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.0, 1.0]])
    ((path, _, body),) = endpoint.requests
    assert path == "/v1/embeddings"
    assert body == {"model": "e", "input": ["a", "b"]}


def test_a_failure_is_tried_again(endpoint):
    endpoint.answers = [(503, {}, {}), (200, {}, vectors((1.0,)))]
    assert make_embedder(endpoint)(["a"], seed=0).shape == (1, 1)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"data": []}, r"no data\[i\]\.embedding for 2 texts"),
        ({"vectors": [[1.0]]}, "no data"),
        ({"data": [{"index": 0, "embedding": "x"}] * 2}, "no data"),
        (vectors((1.0,), (float("nan"),)), "not finite"),
        (vectors((1.0,), ()), "empty or not finite"),
        (vectors((1.0,), (1.0, 2.0)), r"different lengths: \[1, 2\]"),
    ],
)
def test_answers_of_another_form_are_named(endpoint, answer, text):
    endpoint.answers = [(200, {}, json.dumps(answer).encode())]
    with pytest.raises(PolicyError, match=text):
        make_embedder(endpoint)(["a", "b"], seed=0)


def test_a_selection_can_use_any_embedding(endpoint):
    angles = np.radians([0, 10, 100, 180])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).tolist()
    endpoint.answers = [(200, {}, vectors(*rows))]
    selection = select_diverse(list("abcd"), 2, seed=0, embed=make_embedder(endpoint))
    assert set(selection.indices) in ({0, 3}, {1, 3}, {2, 0})


def test_rows_of_zeros_stay():
    np.testing.assert_array_equal(unit_rows(np.zeros((1, 3))), np.zeros((1, 3)))
