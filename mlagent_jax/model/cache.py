"""Key/value cache of the decoder: fixed capacity, one row a sequence.

A row holds `lengths_B[b]` live positions at its start; what lies behind them is
garbage that attention masks. The functions are pure; which sequence sits in which
row, and when a row is full, is the caller's business (sample/engine.py).

Axes: L layers, B rows, S cache positions, T new tokens, K key/value heads, H head
width, R rows that are taken or put.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlagent_jax.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVCache:
    """Keys and values of every layer.

    Attributes:
      k_LBSKH: rotated keys.
      v_LBSKH: values.
      lengths_B: int32, live positions of each row, in [0, S].
    """

    k_LBSKH: jax.Array
    v_LBSKH: jax.Array
    lengths_B: jax.Array

    @property
    def capacity(self) -> int:
        """S: tokens that fit into a row."""
        return self.k_LBSKH.shape[2]


def init_cache(
    cfg: ModelConfig, batch: int, capacity: int, dtype: DTypeLike | None = None
) -> KVCache:
    """Returns an empty cache of `batch` rows of `capacity` tokens.

    Args:
      cfg: the model.
      batch: number of rows.
      capacity: tokens a row can hold; longer sequences must not be written.
      dtype: of keys and values; None takes the model's compute dtype.
    """
    shape = (cfg.num_layers, batch, capacity, cfg.num_kv_heads, cfg.head_dim)
    dtype = cfg.compute_dtype if dtype is None else dtype
    return KVCache(
        k_LBSKH=jnp.zeros(shape, dtype),
        v_LBSKH=jnp.zeros(shape, dtype),
        lengths_B=jnp.zeros(batch, jnp.int32),
    )


def write_layer(
    cache: KVCache,
    layer: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array,
) -> KVCache:
    """Returns `cache` with one layer's new keys and values behind the live ones.

    Tokens with segment id 0 are not written. `lengths_B` stays as it is, because
    every layer writes at the same positions; `advance` moves it once at the end.
    """
    B, T = segment_ids_BT.shape
    S = cache.capacity
    slots_BT = cache.lengths_B[:, None] + jnp.arange(T)
    # Out-of-range positions are dropped by the scatter: padding is sent there.
    slots_BT = jnp.where(segment_ids_BT != 0, slots_BT, S)
    rows_B1 = jnp.arange(B)[:, None]

    def put(old_LBSKH: jax.Array, new_BTKH: jax.Array) -> jax.Array:
        new_BTKH = new_BTKH.astype(old_LBSKH.dtype)
        return old_LBSKH.at[layer, rows_B1, slots_BT].set(new_BTKH, mode="drop")

    return dataclasses.replace(
        cache,
        k_LBSKH=put(cache.k_LBSKH, k_BTKH),
        v_LBSKH=put(cache.v_LBSKH, v_BTKH),
    )


def advance(cache: KVCache, segment_ids_BT: jax.Array) -> KVCache:
    """Returns `cache` with its lengths moved past the real tokens just written."""
    num_new_B = jnp.sum(segment_ids_BT != 0, axis=1, dtype=jnp.int32)
    return dataclasses.replace(cache, lengths_B=cache.lengths_B + num_new_B)


def take_rows(cache: KVCache, rows_R: jax.Array) -> KVCache:
    """Returns the cache of the given rows, in that order; rows may repeat."""
    return KVCache(
        k_LBSKH=cache.k_LBSKH[:, rows_R],
        v_LBSKH=cache.v_LBSKH[:, rows_R],
        lengths_B=cache.lengths_B[rows_R],
    )


def put_rows(cache: KVCache, rows_R: jax.Array, source: KVCache) -> KVCache:
    """Returns `cache` with row `rows_R[i]` replaced by row i of `source`.

    Args:
      cache: the destination.
      rows_R: distinct row numbers; one outside [0, B) is skipped, which pads a
        refill to a fixed size.
      source: R rows with a capacity of at most the destination's.
    """
    S = source.capacity

    def put(old_LBSKH: jax.Array, new_LRSKH: jax.Array) -> jax.Array:
        new_LRSKH = new_LRSKH.astype(old_LBSKH.dtype)
        return old_LBSKH.at[:, rows_R, :S].set(new_LRSKH, mode="drop")

    return KVCache(
        k_LBSKH=put(cache.k_LBSKH, source.k_LBSKH),
        v_LBSKH=put(cache.v_LBSKH, source.v_LBSKH),
        lengths_B=cache.lengths_B.at[rows_R].set(source.lengths_B, mode="drop"),
    )
