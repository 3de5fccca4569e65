import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.errors import ConfigError
from mlagent_jax.model import qwen2
from mlagent_jax.model.logprobs import token_logprobs

B, T = 3, 11


@pytest.fixture(scope="module")
def batch(tiny_config):
    tokens_BT = jax.random.randint(jax.random.key(8), (B, T), 0, tiny_config.vocab_size)
    positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    # A full row, one with padding at its end, one with two packed sequences.
    segment_ids_BT = jnp.ones((B, T), jnp.int32).at[1, 8:].set(0).at[2, 5:].set(2)
    positions_BT = positions_BT.at[2, 5:].add(-5)
    return tokens_BT, positions_BT, segment_ids_BT


def plain_scores(graphdef, params, batch, temperature):
    tokens_BT, positions_BT, segment_ids_BT = batch
    hidden_BTD = qwen2.forward(
        graphdef, params, tokens_BT, positions_BT, segment_ids_BT=segment_ids_BT
    )
    logits_BTV = qwen2.unembed(graphdef, params, hidden_BTD) / temperature
    return jax.nn.log_softmax(logits_BTV, axis=-1)


@pytest.mark.parametrize(
    ("is_tied", "temperature", "chunk_size"),
    [(False, 1.0, 4), (False, 0.5, 128), (True, 0.5, 4)],
)
def test_scores_equal_a_float64_softmax(
    tiny_config, batch, is_tied, temperature, chunk_size
):
    cfg = dataclasses.replace(tiny_config, tie_word_embeddings=is_tied)
    graphdef = qwen2.make_graphdef(cfg)
    params = qwen2.init_params(cfg, jax.random.key(0))
    tokens_BT, positions_BT, segment_ids_BT = batch
    scores = token_logprobs(
        graphdef,
        params,
        tokens_BT,
        positions_BT,
        segment_ids_BT,
        temperature=temperature,
        chunk_size=chunk_size,
    )
    hidden_BTD = qwen2.forward(
        graphdef, params, tokens_BT, positions_BT, segment_ids_BT=segment_ids_BT
    )
    table_DV = (
        params["embed_tokens"]["embedding"].T
        if is_tied
        else params["lm_head"]["kernel"]
    )
    logits_BTV = np.float64(hidden_BTD) @ np.float64(table_DV) / temperature
    logits_BTV -= logits_BTV.max(-1, keepdims=True)
    logp_BTV = logits_BTV - np.log(np.exp(logits_BTV).sum(-1, keepdims=True))
    for b, t in np.ndindex(B, T):
        segment = segment_ids_BT[b, t]
        if t == 0 or segment == 0 or segment != segment_ids_BT[b, t - 1]:
            assert scores.logprobs_BT[b, t] == 0.0
            assert scores.entropy_BT[b, t] == 0.0
            continue
        logp_V = logp_BTV[b, t - 1]
        np.testing.assert_allclose(
            scores.logprobs_BT[b, t], logp_V[tokens_BT[b, t]], atol=1e-5
        )
        np.testing.assert_allclose(
            scores.entropy_BT[b, t], -np.sum(np.exp(logp_V) * logp_V), atol=1e-5
        )


def test_gradient_equals_that_of_a_plain_log_softmax(tiny_config, tiny_params, batch):
    graphdef = qwen2.make_graphdef(tiny_config)
    tokens_BT, positions_BT, segment_ids_BT = batch
    is_scored_BT = (segment_ids_BT[:, 1:] != 0) & (
        segment_ids_BT[:, 1:] == segment_ids_BT[:, :-1]
    )

    def chunked(params):
        scores = token_logprobs(graphdef, params, *batch, chunk_size=4)
        return jnp.sum(scores.logprobs_BT) + 0.3 * jnp.sum(scores.entropy_BT)

    def plain(params):
        logp_BTV = plain_scores(graphdef, params, batch, 1.0)[:, :-1]
        chosen_BT = jnp.take_along_axis(logp_BTV, tokens_BT[:, 1:, None], 2)[..., 0]
        entropy_BT = -jnp.sum(jnp.exp(logp_BTV) * logp_BTV, axis=-1)
        return jnp.sum(jnp.where(is_scored_BT, chosen_BT + 0.3 * entropy_BT, 0.0))

    found = jax.jit(jax.value_and_grad(chunked))(tiny_params)
    expected = jax.jit(jax.value_and_grad(plain))(tiny_params)
    for leaf, expected_leaf in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        scale = max(1.0, float(np.abs(expected_leaf).max()))
        np.testing.assert_allclose(leaf, expected_leaf, atol=1e-5 * scale)


def test_no_array_of_all_logits_exists(tiny_config, tiny_params):
    graphdef = qwen2.make_graphdef(tiny_config)
    num_tokens, chunk_size = 56, 8  # unlike any size of the model
    tokens_BT = jnp.zeros((2, num_tokens), jnp.int32)

    def loss(params):
        scores = token_logprobs(
            graphdef, params, tokens_BT, tokens_BT, tokens_BT + 1, chunk_size=chunk_size
        )
        return jnp.sum(scores.logprobs_BT)

    text = jax.jit(jax.grad(loss)).lower(tiny_params).as_text()
    vocab_size = tiny_config.vocab_size
    assert f"<2x{chunk_size}x{vocab_size}xf32>" in text
    assert f"x{num_tokens}x{vocab_size}xf32>" not in text
    assert f"<{num_tokens // chunk_size}x2x{chunk_size}x{vocab_size}xf32>" not in text


def test_no_array_of_all_attention_scores_exists(tiny_config, tiny_params):
    graphdef = qwen2.make_graphdef(tiny_config)
    num_rows, num_tokens = 4, 4096
    tokens_BT = jnp.zeros((num_rows, num_tokens), jnp.int32)

    def loss(params):
        scores = token_logprobs(
            graphdef, params, tokens_BT, tokens_BT, tokens_BT + 1, chunk_size=8
        )
        return jnp.sum(scores.logprobs_BT)

    text = jax.jit(jax.grad(loss)).lower(tiny_params).as_text()
    shapes = [
        [int(size) for size in dims.split("x")]
        for dims in re.findall(r"tensor<([\dx]+)x(?:f32|i1)>", text)
    ]
    # The scores of a block of queries and their masks: one head of one row at a time.
    queries = num_tokens // 8
    block = tiny_config.num_heads // tiny_config.num_kv_heads * queries * num_tokens
    with_keys = [math.prod(s) for s in shapes if s[-1] == num_tokens and queries in s]
    assert max(with_keys) == block
    assert not any(shape.count(num_tokens) > 1 for shape in shapes)


def test_a_temperature_of_zero_is_refused(tiny_config, tiny_params, batch):
    graphdef = qwen2.make_graphdef(tiny_config)
    with pytest.raises(ConfigError, match=r"temperature = 0\.0.*> 0"):
        token_logprobs(graphdef, tiny_params, *batch, temperature=0.0)
