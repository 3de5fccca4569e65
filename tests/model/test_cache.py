import jax
import jax.numpy as jnp
import numpy as np

from mlagent_jax.model import cache as cache_lib


def filled_cache(cfg, batch: int, capacity: int, value: float) -> cache_lib.KVCache:
    empty = cache_lib.init_cache(cfg, batch, capacity)
    return cache_lib.KVCache(
        k_LBSKH=jnp.full_like(empty.k_LBSKH, value)
        + jnp.arange(batch)[None, :, None, None, None],
        v_LBSKH=jnp.full_like(empty.v_LBSKH, value),
        lengths_B=jnp.arange(batch, dtype=jnp.int32) + int(value),
    )


def test_an_empty_cache_has_the_models_shape_and_dtype(tiny_config):
    cache = cache_lib.init_cache(tiny_config, 3, 10)
    assert cache.k_LBSKH.shape == cache.v_LBSKH.shape == (2, 3, 10, 2, 8)
    assert cache.k_LBSKH.dtype == tiny_config.compute_dtype
    assert cache.capacity == 10
    assert cache_lib.init_cache(tiny_config, 3, 10, "bfloat16").v_LBSKH.dtype == (
        jnp.bfloat16
    )


def test_rows_may_be_taken_repeatedly(tiny_config):
    cache = filled_cache(tiny_config, 3, 4, 1.0)
    taken = cache_lib.take_rows(cache, jnp.array([2, 0, 2]))
    np.testing.assert_array_equal(taken.lengths_B, [3, 1, 3])
    np.testing.assert_array_equal(taken.k_LBSKH[0, :, 0, 0, 0], [3, 1, 3])


def test_put_replaces_only_the_named_rows_and_skips_those_outside(tiny_config):
    cache = filled_cache(tiny_config, 4, 6, 1.0)
    source = filled_cache(tiny_config, 3, 5, 50.0)
    put = jax.jit(cache_lib.put_rows)(cache, jnp.array([2, 0, 4]), source)
    np.testing.assert_array_equal(put.lengths_B, [51, 2, 50, 4])
    np.testing.assert_array_equal(put.k_LBSKH[1, :, 0, 1, 3], [51, 2, 50, 4])
    # Behind the source's capacity the old values stay; nobody attends to them.
    np.testing.assert_array_equal(put.k_LBSKH[1, :, 5, 1, 3], [1, 2, 3, 4])


def test_writes_go_behind_the_live_positions_and_skip_padding(tiny_config):
    cache = cache_lib.init_cache(tiny_config, 2, 5)
    cache = cache_lib.KVCache(
        k_LBSKH=cache.k_LBSKH, v_LBSKH=cache.v_LBSKH, lengths_B=jnp.array([1, 3])
    )
    new_BTKH = jnp.broadcast_to(
        jnp.array([[1.0, 2.0], [3.0, 4.0]])[..., None, None], (2, 2, 2, 8)
    )
    segment_ids_BT = jnp.array([[1, 1], [1, 0]])
    written = cache_lib.write_layer(
        cache, jnp.array(1), new_BTKH, 10 * new_BTKH, segment_ids_BT
    )
    np.testing.assert_array_equal(
        written.k_LBSKH[1, :, :, 0, 0], [[0, 1, 2, 0, 0], [0, 0, 0, 3, 0]]
    )
    np.testing.assert_array_equal(
        written.v_LBSKH[1, :, :, 1, 7], [[0, 10, 20, 0, 0], [0, 0, 0, 30, 0]]
    )
    np.testing.assert_array_equal(written.k_LBSKH[0], 0.0)
    np.testing.assert_array_equal(written.lengths_B, [1, 3])
    advanced = cache_lib.advance(written, segment_ids_BT)
    np.testing.assert_array_equal(advanced.lengths_B, [3, 4])
