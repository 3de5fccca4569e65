import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.model.cache import Readers, piece_lengths
from mlagent_jax.model.cached_attention import (
    attend_chunk,
    attend_prefixes,
    attend_tokens,
)

LONGEST = 1280
NUM_RECENT, RECENT_ROOM = 2, 5


def make_pieces(lengths, num_kv_heads: int, capacity: int, seed: int):
    """Random keys or values; whatever lies behind the live ones is huge."""
    shape = (len(lengths), num_kv_heads, LONGEST, 4)
    x_BKSH = jax.random.normal(jax.random.key(seed), shape)[:, :, :capacity]
    is_live_BS = np.arange(capacity) < np.asarray(lengths)[:, None]
    x_BKSH = jnp.where(is_live_BS[:, None, :, None], x_BKSH, 1e9)
    ends = np.cumsum(piece_lengths(capacity, 1))[:-1]
    return tuple(jnp.split(x_BKSH, ends, axis=2))


def make_cache(lengths, num_kv_heads: int, capacity: int):
    keys, values = (
        make_pieces(lengths, num_kv_heads, capacity, seed) for seed in (0, 1)
    )
    return tuple(piece_BKUH.swapaxes(2, 3) for piece_BKUH in keys), values


def joined(cache) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values, (B, K, S, H) each."""
    keys, values = cache
    return np.concatenate(keys, axis=3).swapaxes(2, 3), np.concatenate(values, axis=2)


def reference(q_TKGH, k_KSH, v_KSH) -> np.ndarray:
    """Queries of the last T of S tokens, one at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q_TKGH, k_KSH, v_KSH))
    out = np.zeros_like(q)
    T, K, G, H = q.shape
    for t, head, g in np.ndindex(T, K, G):
        end = k.shape[1] - T + t + 1
        scores = k[head, :end] @ q[t, head, g] / np.sqrt(H)
        weights = np.exp(scores - scores.max())
        out[t, head, g] = weights @ v[head, :end] / weights.sum()
    return out


def attend(q_BKGH, cache, lengths, live=None, sums=None):
    """Row b sees `lengths[b]` positions, the last two of them as recent tokens."""
    lengths = np.asarray(lengths)
    is_live = np.ones(len(lengths), bool) if live is None else np.asarray(live)
    in_cache_B = np.maximum(lengths - NUM_RECENT, 0)
    rows_B1, places_BR = np.arange(len(lengths))[:, None], np.arange(RECENT_ROOM)
    places_BR = np.minimum(in_cache_B[:, None] + places_BR, lengths[:, None] - 1)
    recent_k, recent_v = (x_BKSH[rows_B1, :, places_BR] for x_BKSH in joined(cache))
    return np.asarray(
        jax.jit(attend_tokens, static_argnames="key_axis")(
            q_BKGH,
            *cache,
            jnp.asarray(in_cache_B, jnp.int32),
            recent_k.transpose(0, 2, 3, 1),
            recent_v.transpose(0, 2, 1, 3),
            jnp.int32(NUM_RECENT - 1),
            end=jnp.int32((in_cache_B * is_live).max()),
            key_axis=3,
            sums=sums,
        )
    )


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(3, 3), (6, 2), (7, 1)])
def test_each_row_attends_to_its_own_live_positions(num_heads, num_kv_heads):
    # Rows end on both sides of the edges of pieces.
    lengths = [2, 257, 512, 513, 514, 515, 1000]
    cache = make_cache(lengths, num_kv_heads, 1024)
    shape = (len(lengths), num_kv_heads, num_heads // num_kv_heads, 4)
    q_BKGH = jax.random.normal(jax.random.key(2), shape)
    out_BKGH = attend(q_BKGH, cache, lengths)
    k_BKSH, v_BKSH = joined(cache)
    for b, length in enumerate(lengths):
        k_KSH, v_KSH = k_BKSH[b, :, :length], v_BKSH[b, :, :length]
        expected = reference(q_BKGH[b][None], k_KSH, v_KSH)[0]
        np.testing.assert_allclose(out_BKGH[b], expected, atol=1e-5)


def test_rows_attend_to_the_prefix_that_they_share_and_to_their_own():
    prefix_lengths, lengths = [300, 0, 1000, 512], [2, 400, 30, 257, 3]
    prefixes = make_cache(prefix_lengths, 2, 1024)
    own = make_cache(lengths, 2, 1024)
    # Two rows read the first prefix, one the third, one the last, one none.
    readers = Readers(
        rows_PN=jnp.array([[4, 0], [0, 0], [1, 0], [2, 0]]),
        places_B=jnp.array([1, 4, 6, 8, 0]),
    )
    prefix_of_row = [0, 2, 3, None, 0]
    q_BKGH = jax.random.normal(jax.random.key(2), (5, 2, 3, 4))
    sums = jax.jit(attend_prefixes, static_argnames="key_axis")(
        q_BKGH,
        *prefixes,
        jnp.array(prefix_lengths),
        readers,
        end=jnp.int32(1000),
        key_axis=3,
    )
    out_BKGH = attend(q_BKGH, own, lengths, sums=sums)
    for b, (prefix, length) in enumerate(zip(prefix_of_row, lengths, strict=True)):
        whole = []
        for shared_PKSH, own_BKSH in zip(joined(prefixes), joined(own), strict=True):
            num_shared = 0 if prefix is None else prefix_lengths[prefix]
            shared_KSH = shared_PKSH[prefix or 0, :, :num_shared]
            whole.append(np.concatenate([shared_KSH, own_BKSH[b, :, :length]], 1))
        expected = reference(q_BKGH[b][None], *whole)[0]
        np.testing.assert_allclose(out_BKGH[b], expected, atol=1e-5)
    # Who reads nothing gets, bit for bit, what it would get without prefixes.
    np.testing.assert_array_equal(out_BKGH[3], attend(q_BKGH, own, lengths)[3])


@pytest.mark.parametrize("num_shared", [0, 100, 256, 512, 600])
def test_a_chunk_attends_to_all_of_a_prefix_before_its_row(num_shared):
    num_tokens, end = 7, 300
    prefixes = make_cache([40, num_shared], 2, 1024)
    own = make_cache([end], 2, 1024)
    q_TKGH = jax.random.normal(jax.random.key(2), (num_tokens, 2, 3, 4))
    out_1KMH = jax.jit(attend_chunk, static_argnames="key_axis")(
        q_TKGH.transpose(1, 2, 0, 3).reshape(1, 2, 3 * num_tokens, 4),
        *own,
        jnp.tile(jnp.arange(end - num_tokens, end), 3),
        end=jnp.int32(end),
        row=jnp.int32(0),
        key_axis=3,
        prefix=(*prefixes, jnp.int32(1), jnp.int32(num_shared)),
    )
    out_TKGH = out_1KMH.reshape(2, 3, num_tokens, 4).transpose(2, 0, 1, 3)
    whole = [
        np.concatenate([shared[1, :, :num_shared], row[0, :, :end]], axis=1)
        for shared, row in zip(joined(prefixes), joined(own), strict=True)
    ]
    np.testing.assert_allclose(out_TKGH, reference(q_TKGH, *whole), atol=1e-5)


@pytest.mark.parametrize("end", [7, 256, 300, 512, 700, 1000])
def test_a_chunk_attends_causally_to_its_row(end):
    num_tokens, row = 7, 1
    cache = make_cache([50, end, 1000], 2, 1024)
    q_TKGH = jax.random.normal(jax.random.key(2), (num_tokens, 2, 3, 4))
    q_1KMH = q_TKGH.transpose(1, 2, 0, 3).reshape(1, 2, 3 * num_tokens, 4)
    last_M = jnp.tile(jnp.arange(end - num_tokens, end), 3)
    out_1KMH = jax.jit(attend_chunk, static_argnames="key_axis")(
        q_1KMH, *cache, last_M, end=jnp.int32(end), row=jnp.int32(row), key_axis=3
    )
    out_TKGH = out_1KMH.reshape(2, 3, num_tokens, 4).transpose(2, 0, 1, 3)
    k_KSH, v_KSH = (x_BKSH[row, :, :end] for x_BKSH in joined(cache))
    np.testing.assert_allclose(out_TKGH, reference(q_TKGH, k_KSH, v_KSH), atol=1e-5)


def test_finished_rows_give_finite_values_and_change_nothing():
    lengths = [40, 700, 20]
    cache = make_cache(lengths, 2, 1024)
    q_BKGH = jax.random.normal(jax.random.key(2), (3, 2, 2, 4))
    out_BKGH = attend(q_BKGH, cache, lengths, live=[True, False, True])
    whole_BKGH = attend(q_BKGH, cache, lengths)
    np.testing.assert_array_equal(out_BKGH[[0, 2]], whole_BKGH[[0, 2]])
    none_BKGH = attend(q_BKGH, cache, lengths, live=[False] * 3)
    assert np.all(np.isfinite(out_BKGH))
    assert np.all(np.isfinite(none_BKGH))


@pytest.mark.parametrize("num_groups", [1, 2, 4])  # XLA's code depends on sizes.
@pytest.mark.parametrize("capacity", [128, 192, 256, 320, 640])
def test_neither_capacity_nor_other_rows_change_a_bit(capacity, num_groups):
    q_BKGH = jax.random.normal(jax.random.key(2), (3, 2, num_groups, 4))
    small = attend(q_BKGH, make_cache([70, 90, 100], 2, capacity), [70, 90, 100])
    # The last row makes more pieces live for the first two as well.
    large = attend(q_BKGH, make_cache([70, 90, 1200], 2, LONGEST), [70, 90, 1200])
    np.testing.assert_array_equal(small[:2], large[:2])
