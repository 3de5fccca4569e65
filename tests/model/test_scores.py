import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.config import MeshConfig
from mlagent_jax.model.scores import score_hidden
from mlagent_jax.parallel.mesh import make_mesh

B, T, D, V = 4, 11, 8, 24


def scores_and_gradients(chunk_size: int, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(3), 4)
    hidden_BTD = jax.random.normal(keys[0], (B, T, D)).astype(dtype)
    table_DV = jax.random.normal(keys[1], (D, V))
    tokens_BT = jax.random.randint(keys[2], (B, T), 0, V)
    weights_2BT = jax.random.normal(keys[3], (2, B, T))

    def loss(hidden_BTD, table_DV):
        scores = score_hidden(
            hidden_BTD, table_DV, tokens_BT, temperature=0.7, chunk_size=chunk_size
        )
        return jnp.sum(jnp.stack(scores) * weights_2BT), scores

    grads, scores = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(
        hidden_BTD, table_DV
    )
    return *scores, *grads


def test_scores_equal_a_plain_softmax():
    keys = jax.random.split(jax.random.key(3), 4)
    hidden_BTD = np.asarray(jax.random.normal(keys[0], (B, T, D)), np.float64)
    table_DV = np.asarray(jax.random.normal(keys[1], (D, V)), np.float64)
    tokens_BT = np.asarray(jax.random.randint(keys[2], (B, T), 0, V))
    logits_BTV = hidden_BTD @ table_DV / 0.7
    probs_BTV = np.exp(logits_BTV) / np.exp(logits_BTV).sum(-1, keepdims=True)
    logprobs_BT, entropy_BT, *_ = scores_and_gradients(chunk_size=4)
    chosen_BT = np.take_along_axis(probs_BTV, tokens_BT[..., None], -1)[..., 0]
    np.testing.assert_allclose(logprobs_BT, np.log(chosen_BT), atol=1e-5)
    expected_BT = -(probs_BTV * np.log(probs_BTV)).sum(-1)
    np.testing.assert_allclose(entropy_BT, expected_BT, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 4, 11, 100])
def test_the_size_of_chunks_changes_nothing(chunk_size):
    for found, expected in zip(
        scores_and_gradients(chunk_size), scores_and_gradients(T), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 4, 1), (1, 1, 8), (2, 2, 2)])
def test_a_mesh_changes_neither_scores_nor_gradients(shape):
    expected = scores_and_gradients(chunk_size=4)
    data, fsdp, tensor = shape
    devices = jax.devices()[: data * fsdp * tensor]
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), devices)
    with jax.set_mesh(mesh):
        found = scores_and_gradients(chunk_size=4)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_gradient_of_the_table_is_summed_in_float32():
    *_, table_grad_DV = scores_and_gradients(chunk_size=1, dtype=jnp.bfloat16)
    *_, expected_DV = scores_and_gradients(chunk_size=T, dtype=jnp.bfloat16)
    np.testing.assert_allclose(table_grad_DV, expected_DV, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("num_rows", "num_tokens", "width", "chunk"),
    [
        (1, 6144, 1024, 2048),
        (2, 3072, 1024, 1024),
        (1, 2048, 256, 512),
        (32, 256, 1024, 128),
    ],
)
def test_a_chunk_has_2048_tokens_or_twice_the_width_and_at_least_128_of_a_row(
    num_rows, num_tokens, width, chunk
):
    hidden_BTD = jax.ShapeDtypeStruct((num_rows, num_tokens, width), jnp.float32)
    table_DV = jax.ShapeDtypeStruct((width, 7), jnp.float32)
    tokens_BT = jax.ShapeDtypeStruct((num_rows, num_tokens), jnp.int32)
    score = jax.jit(lambda *args: score_hidden(*args, temperature=1.0))
    text = score.lower(hidden_BTD, table_DV, tokens_BT).as_text()
    assert f"tensor<{num_rows}x{chunk}x7xf32>" in text
