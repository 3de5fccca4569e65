import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.model import cache as cache_lib


def numbered(pieces, capacity):
    """The same shapes with every value telling its row and position."""
    batch, K, _, H = pieces[0].shape
    x_BKSH = jnp.arange(batch)[:, None, None, None] * 10_000.0
    x_BKSH = x_BKSH + jnp.arange(capacity)[:, None]
    x_BKSH = jnp.broadcast_to(x_BKSH, (batch, K, capacity, H))
    starts = cache_lib.piece_starts(pieces)
    return tuple(jnp.split(x_BKSH, starts[1:], axis=2))


def joined(pieces) -> np.ndarray:
    return np.concatenate(pieces, axis=2)


def test_an_empty_cache_has_the_models_shape_and_dtype(tiny_config):
    cache = cache_lib.init_cache(tiny_config, 3, 10)
    assert len(cache.keys) == len(cache.values) == tiny_config.num_layers
    assert joined(cache.keys[0]).shape == (3, 2, 64, 8)
    assert cache.keys[0][0].dtype == tiny_config.compute_dtype
    assert cache.capacity == 64
    narrow = cache_lib.init_cache(tiny_config, 3, 10, "bfloat16")
    assert narrow.values[1][0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("capacity", "chunk_size", "expected"),
    [
        (10, 1, (64,)),
        (65, 8, (128,)),
        (256, 64, (256,)),
        (600, 64, (256, 256, 128)),
        (3000, 256, (256, 256, 512, 1024, 1024)),
        (700, 96, (192, 192, 384)),
        (1000, 512, (512, 512)),
    ],
)
def test_pieces_double_and_end_at_chunks(capacity, chunk_size, expected):
    assert cache_lib.piece_lengths(capacity, chunk_size) == expected


def test_a_token_a_row_goes_to_its_slot_whatever_the_piece(tiny_config):
    pieces = cache_lib.init_cache(tiny_config, 4, 700).keys[0]
    pieces = numbered(pieces, 704)
    slots_B = jnp.array([0, 255, 256, 699])
    new_BKH = -1.0 - jnp.broadcast_to(jnp.arange(4.0)[:, None, None], (4, 2, 8))
    written = joined(jax.jit(cache_lib.put_tokens)(pieces, new_BKH, slots_B))
    expected = joined(pieces)
    for row, slot in enumerate(slots_B):
        expected[row, :, slot] = -1.0 - row
    np.testing.assert_array_equal(written, expected)


@pytest.mark.parametrize("start", [0, 192, 256, 448, 640])
def test_a_chunk_goes_to_one_row_and_nowhere_else(tiny_config, start):
    cache = cache_lib.init_cache(tiny_config, 3, 700, chunk_size=64)
    pieces = numbered(cache.keys[0], cache.capacity)
    new_1KTH = jnp.full((1, 2, 64, 8), -1.0)
    put = jax.jit(cache_lib.put_chunk)
    written = joined(put(pieces, new_1KTH, jnp.int32(1), jnp.int32(start)))
    expected = joined(pieces)
    expected[1, :, start : start + 64] = -1.0
    np.testing.assert_array_equal(written, expected)


@pytest.mark.parametrize("num_tokens", [0, 1, 256, 300, 512])
def test_a_prefix_is_copied_and_the_source_stays(tiny_config, num_tokens):
    cache = cache_lib.init_cache(tiny_config, 3, 700)
    filled = tuple(numbered(pieces, 704) for pieces in cache.keys)
    cache = dataclasses.replace(cache, keys=filled, values=filled)
    copy = jax.jit(cache_lib.copy_prefix)
    copied = copy(cache, jnp.int32(2), jnp.int32(0), jnp.int32(num_tokens))
    for before, after in zip(filled, copied.values, strict=True):
        before, after = joined(before), joined(after)
        np.testing.assert_array_equal(
            after[0, :, :num_tokens], before[2, :, :num_tokens]
        )
        np.testing.assert_array_equal(after[1:], before[1:])
    same = copy(cache, jnp.int32(2), jnp.int32(2), jnp.int32(num_tokens))
    np.testing.assert_array_equal(joined(same.keys[0]), joined(filled[0]))


def test_a_cache_grows_around_what_it_holds(tiny_config):
    cache = cache_lib.init_cache(tiny_config, 2, 320)
    filled = tuple(numbered(pieces, 320) for pieces in cache.keys)
    cache = dataclasses.replace(cache, keys=filled, values=filled)
    grown = cache_lib.grow(cache, 1100)
    assert grown.capacity == 1152
    empty = cache_lib.init_cache(tiny_config, 2, 1100)
    assert jax.tree.map(jnp.shape, grown) == jax.tree.map(jnp.shape, empty)
    np.testing.assert_array_equal(
        joined(grown.keys[1])[:, :, :320], joined(cache.keys[1])
    )
