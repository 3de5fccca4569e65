"""`weighted_sum` against float64 by hand and against autodiff of `score_hidden`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.config import MeshConfig
from mlagent_jax.model.likelihood import weighted_sum
from mlagent_jax.model.scores import score_hidden
from mlagent_jax.parallel.mesh import make_mesh

B, T, D, V = 4, 11, 8, 24


def inputs(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(5), 4)
    return (
        jax.random.normal(keys[0], (B, T, D)).astype(dtype),
        jax.random.normal(keys[1], (D, V)),
        jax.random.randint(keys[2], (B, T), 0, V),
        jax.random.normal(keys[3], (B, T)),  # also negative ones
    )


def with_gradients(chunk_size, *, dtype=jnp.float32, scale=1.0, function=weighted_sum):
    """Returns (scale x sum, logprobs_BT, gradients in hidden states and table)."""

    def loss(hidden_BTD, table_DV, tokens_BT, weights_BT):
        total, logprobs_BT = function(
            hidden_BTD, table_DV, tokens_BT, weights_BT, chunk_size=chunk_size
        )
        return scale * total, logprobs_BT

    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (total, logprobs_BT), grads = value_and_grad(*inputs(dtype))
    return total, logprobs_BT, *grads


def by_autodiff(hidden_BTD, table_DV, tokens_BT, weights_BT, *, chunk_size):
    logprobs_BT, _ = score_hidden(
        hidden_BTD, table_DV, tokens_BT, temperature=1.0, chunk_size=chunk_size
    )
    return jnp.sum(weights_BT * logprobs_BT), logprobs_BT


def test_the_sum_and_its_gradients_are_those_of_float64_by_hand():
    hidden, table_DV, tokens_BT, weights_BT = (
        np.asarray(x, np.float64 if x.dtype == jnp.float32 else None) for x in inputs()
    )
    logits_BTV = hidden @ table_DV
    probs_BTV = np.exp(logits_BTV) / np.exp(logits_BTV).sum(-1, keepdims=True)
    chosen_BT = np.take_along_axis(probs_BTV, tokens_BT[..., None], -1)[..., 0]
    grad_BTV = weights_BT[..., None] * (np.eye(V)[tokens_BT] - probs_BTV)
    total, logprobs_BT, hidden_grad_BTD, table_grad_DV = with_gradients(4)
    np.testing.assert_allclose(logprobs_BT, np.log(chosen_BT), atol=1e-5)
    expected = (weights_BT * np.log(chosen_BT)).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(hidden_grad_BTD, grad_BTV @ table_DV.T, atol=1e-5)
    expected_DV = np.einsum("btd,btv->dv", hidden, grad_BTV)
    np.testing.assert_allclose(table_grad_DV, expected_DV, atol=2e-5)


@pytest.mark.parametrize("chunk_size", [1, 4, 11, 100, None])
def test_autodiff_says_the_same_at_any_size_of_chunks(chunk_size):
    found = with_gradients(chunk_size, scale=-0.3)
    expected = with_gradients(chunk_size, scale=-0.3, function=by_autodiff)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 4, 1), (1, 1, 8), (2, 2, 2), (1, 1, 1)])
def test_a_mesh_changes_neither_sum_nor_gradients(shape):
    expected = with_gradients(4, scale=2.0)
    data, fsdp, tensor = shape
    devices = jax.devices()[: data * fsdp * tensor]
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), devices)
    with jax.set_mesh(mesh):
        found = with_gradients(4, scale=2.0)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_in_bfloat16_only_the_factors_of_products_are_rounded():
    _, _, hidden_grad_BTD, table_grad_DV = with_gradients(2, dtype=jnp.bfloat16)
    assert hidden_grad_BTD.dtype == jnp.bfloat16
    assert table_grad_DV.dtype == jnp.float32
    _, _, *expected = with_gradients(2, dtype=jnp.bfloat16, function=by_autodiff)
    for ours, theirs in zip((hidden_grad_BTD, table_grad_DV), expected, strict=True):
        ours, theirs = np.float32(ours), np.float32(theirs)
        assert np.abs(ours - theirs).max() < 0.01 * np.abs(theirs).max()


def test_the_logits_of_a_chunk_are_made_once():
    hidden_BTD, table_DV, *rest = inputs()

    def count_products(function):
        value_and_grad = jax.value_and_grad(
            lambda *factors: function(*factors, *rest, chunk_size=4)[0], argnums=(0, 1)
        )
        text = jax.jit(value_and_grad).lower(hidden_BTD, table_DV).compile().as_text()
        return text.count(" dot(")

    assert count_products(weighted_sum) == 3
    assert count_products(by_autodiff) == 4


def test_without_a_gradient_nothing_but_logits_is_made():
    values = inputs()
    text = jax.jit(lambda *x: weighted_sum(*x, chunk_size=4)).lower(*values).as_text()
    assert text.count("stablehlo.dot_general") == 1
