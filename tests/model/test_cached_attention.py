import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.config import ModelConfig
from mlagent_jax.model.cache import KVCache, init_cache
from mlagent_jax.model.cached_attention import attend_to_cache

LAYER = 1


def make_cache(cfg: ModelConfig, lengths, capacity: int) -> KVCache:
    """Random keys and values; whatever lies behind the live ones is huge."""
    empty = init_cache(cfg, len(lengths), capacity, "float32")
    k_key, v_key = jax.random.split(jax.random.key(0))
    shape = (*empty.k_LBSKH.shape[:2], 600, *empty.k_LBSKH.shape[3:])
    is_live = np.arange(capacity) < np.asarray(lengths)[:, None]
    is_live_LBSKH = is_live[None, :, :, None, None]
    k_LBSKH = jax.random.normal(k_key, shape)[:, :, :capacity]
    v_LBSKH = jax.random.normal(v_key, shape)[:, :, :capacity]
    return KVCache(
        k_LBSKH=jnp.where(is_live_LBSKH, k_LBSKH, 1e9),
        v_LBSKH=jnp.where(is_live_LBSKH, v_LBSKH, 1e9),
        lengths_B=jnp.array(lengths, jnp.int32),
    )


def make_config(num_heads: int, num_kv_heads: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_layers=2,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=4,
    )


def attend(q_BTNH, filled: KVCache, num_new):
    """The lengths of `filled` count the newest tokens; the function wants them not."""
    cache = dataclasses.replace(filled, lengths_B=filled.lengths_B - jnp.array(num_new))
    T = q_BTNH.shape[1]
    segment_ids_BT = (np.arange(T) < np.asarray(num_new)[:, None]).astype(np.int32)
    return np.asarray(
        jax.jit(attend_to_cache)(q_BTNH, cache, jnp.int32(LAYER), segment_ids_BT)
    )


def reference(q_TNH, k_SKH, v_SKH) -> np.ndarray:
    """Queries of the last T of S tokens, one at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q_TNH, k_SKH, v_SKH))
    out = np.zeros_like(q)
    for t, n in np.ndindex(q.shape[:2]):
        end = len(k) - len(q) + t + 1
        head = n // (q.shape[1] // k.shape[1])
        scores = k[:end, head] @ q[t, n] / np.sqrt(q.shape[2])
        weights = np.exp(scores - scores.max())
        out[t, n] = weights @ v[:end, head] / weights.sum()
    return out


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(3, 3), (6, 2), (7, 1)])
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_each_row_attends_to_its_own_live_positions(
    num_heads, num_kv_heads, num_tokens
):
    # 300 is no multiple of a block, and some rows end on a block's edge.
    lengths = [num_tokens, 128, 129, 300, 256]
    cache = make_cache(make_config(num_heads, num_kv_heads), lengths, 300)
    q_BTNH = jax.random.normal(
        jax.random.key(1), (len(lengths), num_tokens, num_heads, 4)
    )
    out_BTNH = attend(q_BTNH, cache, [num_tokens] * len(lengths))
    for b, length in enumerate(lengths):
        k_SKH, v_SKH = (x[LAYER, b, :length] for x in (cache.k_LBSKH, cache.v_LBSKH))
        expected_TNH = reference(q_BTNH[b], k_SKH, v_SKH)
        np.testing.assert_allclose(out_BTNH[b], expected_TNH, atol=1e-5)


def test_padding_and_finished_rows_give_finite_values_and_change_nothing():
    lengths = [40, 30, 20]
    cache = make_cache(make_config(4, 2), lengths, 64)
    q_BTNH = jax.random.normal(jax.random.key(1), (3, 4, 4, 4))
    out_BTNH = attend(q_BTNH, cache, [4, 2, 0])
    whole_BTNH = attend(q_BTNH, cache, [4, 4, 4])
    np.testing.assert_array_equal(out_BTNH[0], whole_BTNH[0])
    assert np.all(np.isfinite(attend(q_BTNH, cache, [0, 0, 0])))


def test_neither_capacity_nor_other_rows_change_a_bit():
    cfg = make_config(4, 2)
    q_BTNH = jax.random.normal(jax.random.key(1), (3, 1, 4, 4))
    short = attend(q_BTNH, make_cache(cfg, [70, 90, 100], 128), [1, 1, 1])
    # The blocks of the last row make the loop longer for the first two as well.
    long = attend(q_BTNH, make_cache(cfg, [70, 90, 500], 600), [1, 1, 1])
    np.testing.assert_array_equal(short[:2], long[:2])
