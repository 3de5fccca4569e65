import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.model import cache as cache_lib
from mlagent_jax.model import cache_writes, decoder, qwen2

CHUNK = 8


@pytest.fixture(scope="module")
def run(tiny_config):
    prefill = jax.jit(decoder.prefill_chunk, static_argnums=0)
    step = jax.jit(decoder.decode_tokens, static_argnums=0)
    return prefill, step


def full_forward(cfg, params, tokens_BT):
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    return qwen2.forward(qwen2.make_graphdef(cfg), params, tokens_BT, positions_BT)


@pytest.mark.parametrize(
    ("is_tied", "key_axis", "is_turned"),
    [(False, 3, False), (True, 3, False), (True, 2, False), (True, 3, True)],
)
def test_prefill_and_decode_equal_the_full_forward(
    tiny_config, tiny_params, run, is_tied, key_axis, is_turned
):
    cfg = dataclasses.replace(tiny_config, tie_word_embeddings=is_tied)
    prefill, step = run
    lengths = [19, 5, 0]
    tokens_BT = jax.random.randint(jax.random.key(1), (3, 24), 0, cfg.vocab_size)
    full_BTD = full_forward(cfg, tiny_params, tokens_BT)
    weights = decoder.fuse_weights(cfg, tiny_params, is_turned=is_turned)
    cache = cache_lib.init_cache(cfg, 3, 30, chunk_size=CHUNK, key_axis=key_axis)
    for row, length in enumerate(lengths):
        for start in range(0, length, CHUNK):
            chunk_T = tokens_BT[row, start : start + CHUNK]
            place = {"row": jnp.int32(row), "start": jnp.int32(start)}
            cache = prefill(cfg, weights, cache, chunk_T, **place)
    cache = dataclasses.replace(cache, lengths_B=jnp.array(lengths))
    recent = cache_lib.init_recent(cfg, cache, 5)
    is_live_B = jnp.array([True, True, False])
    for turn in range(4):
        places_B1 = (jnp.array(lengths) + turn)[:, None]
        tokens_B = jnp.take_along_axis(tokens_BT, places_B1, axis=1)[:, 0]
        hidden_BD, recent = step(cfg, weights, cache, recent, tokens_B, is_live_B)
        expected_BD = jnp.take_along_axis(full_BTD, places_B1[..., None], axis=1)[:, 0]
        np.testing.assert_allclose(hidden_BD[:2], expected_BD[:2], atol=1e-5)
        assert np.all(np.isfinite(hidden_BD))
    # The same again from the cache, where the first of them are kept.
    kept_B = jnp.array([2, 3, 0])
    cache = cache_writes.keep_recent(cache, recent, kept_B)
    np.testing.assert_array_equal(cache.lengths_B, [21, 8, 0])
    places_B1 = cache.lengths_B[:, None]
    tokens_B = jnp.take_along_axis(tokens_BT, places_B1, axis=1)[:, 0]
    recent = cache_lib.init_recent(cfg, cache, 1)
    hidden_BD, _ = step(cfg, weights, cache, recent, tokens_B, is_live_B)
    expected_BD = jnp.take_along_axis(full_BTD, places_B1[..., None], axis=1)[:, 0]
    np.testing.assert_allclose(hidden_BD[:2], expected_BD[:2], atol=1e-5)
    logits_BV = qwen2.unembed(qwen2.make_graphdef(cfg), tiny_params, hidden_BD)
    np.testing.assert_allclose(
        decoder.unembed(weights, hidden_BD), logits_BV, atol=1e-5
    )


def test_the_copy_has_the_compute_dtype(tiny_config, tiny_params):
    cfg = dataclasses.replace(tiny_config, compute_dtype="bfloat16")
    weights = decoder.fuse_weights(cfg, tiny_params)
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {jnp.dtype("bfloat16")}
