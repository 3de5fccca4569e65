import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.model import cache as cache_lib
from mlagent_jax.model import cache_writes

# Keys lie with their positions in the last axis here, values in the one before.
AXES = pytest.mark.parametrize("axis", [2, 3])


def init_cache(*args, **kwargs):
    return cache_lib.init_cache(*args, **kwargs, key_axis=3)


def pieces_of(cache, axis, layer=0):
    return (cache.keys if axis == 3 else cache.values)[layer]


def numbered(pieces, capacity, axis):
    """The same shapes with every value telling its row and position."""
    batch, K, H = pieces[0].shape[0], pieces[0].shape[1], pieces[0].shape[5 - axis]
    x_BKSH = jnp.arange(batch)[:, None, None, None] * 10_000.0
    x_BKSH = x_BKSH + jnp.arange(capacity)[:, None]
    x_BKSH = jnp.broadcast_to(x_BKSH, (batch, K, capacity, H))
    starts = cache_lib.piece_starts(pieces, axis)
    return tuple(jnp.split(jnp.moveaxis(x_BKSH, 2, axis), starts[1:], axis=axis))


def joined(pieces, axis) -> np.ndarray:
    """Returns (B, K, S, H), whichever the pieces hold."""
    return np.moveaxis(np.concatenate(pieces, axis=axis), axis, 2)


def all_numbered(cache):
    keys = tuple(numbered(p, cache.capacity, 3) for p in cache.keys)
    values = tuple(numbered(p, cache.capacity, 2) for p in cache.values)
    return dataclasses.replace(cache, keys=keys, values=values)


def test_an_empty_cache_has_the_models_shape_and_dtype(tiny_config):
    cache = init_cache(tiny_config, 3, 10)
    assert len(cache.keys) == len(cache.values) == tiny_config.num_layers
    assert cache.keys[0][0].shape == (3, 2, 8, 64)
    assert cache.values[0][0].shape == (3, 2, 64, 8)
    assert cache.keys[0][0].dtype == tiny_config.compute_dtype
    assert cache.capacity == 64
    narrow = init_cache(tiny_config, 3, 10, "bfloat16")
    assert narrow.values[1][0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("capacity", "chunk_size", "expected"),
    [
        (10, 1, (64,)),
        (65, 8, (128,)),
        (256, 64, (256,)),
        (600, 64, (512, 128)),
        (1900, 64, (512, 512, 512, 384)),
        (5000, 256, (512, 512, 512, 768, 1024, 1536, 256)),
        (700, 96, (384, 384)),
        (1000, 512, (512, 512)),
    ],
)
def test_pieces_grow_with_distance_and_end_at_chunks(capacity, chunk_size, expected):
    assert cache_lib.piece_lengths(capacity, chunk_size) == expected


@AXES
@pytest.mark.parametrize("num_tokens", [1, 16, 64, 150])
@pytest.mark.parametrize("put", [cache_writes.put_windows, cache_writes.scatter_tokens])
def test_new_tokens_go_to_their_slots_whatever_the_piece(
    tiny_config, axis, num_tokens, put
):
    cache = init_cache(tiny_config, 6, 700)
    pieces = numbered(pieces_of(cache, axis), 704, axis)
    # Inside of a piece, across one or more edges, up to the end and over it.
    slots_B = np.array([0, 100, 250, 450, 704 - num_tokens, 700])
    new_BKTH = jax.random.normal(jax.random.key(0), (6, 2, num_tokens, 8))
    new = jnp.moveaxis(new_BKTH, 2, axis)
    written = jax.jit(put, static_argnums=3)(pieces, new, jnp.asarray(slots_B), axis)
    expected = joined(pieces, axis).copy()
    for row, slot in enumerate(slots_B):
        end = min(slot + num_tokens, 704)
        expected[row, :, slot:end] = new_BKTH[row, :, : end - slot]
    np.testing.assert_array_equal(joined(written, axis), expected)


@AXES
def test_each_recent_token_takes_the_next_place(tiny_config, axis):
    cache = init_cache(tiny_config, 3, 64)
    recent = cache_lib.init_recent(tiny_config, cache, 2)
    layers = recent.keys if axis == 3 else recent.values
    new_BKH = jax.random.normal(jax.random.key(0), (2, 3, 2, 8))
    put = jax.jit(cache_writes.put_newest, static_argnums=3)
    written = put(layers[0], new_BKH[0], jnp.int32(0), axis)
    written = put(written, new_BKH[1], jnp.int32(1), axis)
    np.testing.assert_array_equal(np.moveaxis(written, axis, 0), np.asarray(new_BKH))


@AXES
@pytest.mark.parametrize("start", [0, 192, 256, 448, 640])
@pytest.mark.parametrize("put", [cache_writes.put_chunk, cache_writes.put_by_chunks])
def test_a_chunk_goes_to_one_row_and_nowhere_else(tiny_config, start, axis, put):
    cache = init_cache(tiny_config, 3, 700, chunk_size=64)
    pieces = numbered(pieces_of(cache, axis), cache.capacity, axis)
    new = jnp.moveaxis(jnp.full((1, 2, 64, 8), -1.0), 2, axis)
    put = jax.jit(put, static_argnums=4)
    written = joined(put(pieces, new, jnp.int32(1), jnp.int32(start), axis), axis)
    expected = joined(pieces, axis).copy()
    expected[1, :, start : start + 64] = -1.0
    np.testing.assert_array_equal(written, expected)


@AXES
@pytest.mark.parametrize("num_tokens", [0, 1, 256, 300, 512])
def test_a_prefix_is_copied_and_the_source_stays(tiny_config, num_tokens, axis):
    cache = all_numbered(init_cache(tiny_config, 3, 700))
    copy = jax.jit(cache_writes.copy_prefix)
    copied = copy(cache, jnp.int32(2), jnp.int32(0), jnp.int32(num_tokens))
    for layer in range(tiny_config.num_layers):
        before = joined(pieces_of(cache, axis, layer), axis)
        after = joined(pieces_of(copied, axis, layer), axis)
        np.testing.assert_array_equal(
            after[0, :, :num_tokens], before[2, :, :num_tokens]
        )
        np.testing.assert_array_equal(after[1:], before[1:])
    same = copy(cache, jnp.int32(2), jnp.int32(2), jnp.int32(num_tokens))
    np.testing.assert_array_equal(
        joined(pieces_of(same, axis), axis), joined(pieces_of(cache, axis), axis)
    )


@AXES
def test_a_cache_grows_around_what_it_holds(tiny_config, axis):
    cache = all_numbered(init_cache(tiny_config, 2, 320))
    grown = cache_lib.grow(cache, 1100)
    assert grown.capacity == 1152
    empty = init_cache(tiny_config, 2, 1100)
    assert jax.tree.map(jnp.shape, grown) == jax.tree.map(jnp.shape, empty)
    np.testing.assert_array_equal(
        joined(pieces_of(grown, axis, 1), axis)[:, :, :320],
        joined(pieces_of(cache, axis, 1), axis),
    )
