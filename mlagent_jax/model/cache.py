"""Key/value cache of the decoder: fixed capacity, one row a sequence.

A row holds `lengths_B[b]` live positions at its start; what lies behind them is
garbage that attention masks. A layer's positions are cut into pieces that grow with
their distance, arrays of their own: attention reads whole pieces, those that the
longest live row reaches, so that its cost follows what is live (half as much again at
most, behind the first 512) and not what is allocated. Cutting the live part out of one
array would copy it at every step, which took two thirds of a decode step on CPU
(BUILD_NOTES.md, "Speed"). Writing one token a row into it at every step costs as well:
the newest tokens wait in `RecentTokens`, and are written together (`cache_writes`).

On CPU keys lie with their positions last, (B, K, H, U): attention of a few queries to
keys that lie as values do, (B, K, U, H), takes XLA two to three times as long there. A
TPU cannot write at a place in the last axis without laying the whole array out anew.

The functions are pure; which sequence sits in which row, and when a row is full, is
the caller's business (sample/engine.py).

Axes: L layers, B rows, U positions of a piece, T new tokens, K key/value heads, H
head width.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlagent_jax.config import ModelConfig
from mlagent_jax.model.layers import rope_tables

Pieces = tuple[jax.Array, ...]  # of one layer, each (B, K, U, H) or (B, K, H, U)
VALUE_AXIS = 2  # of the positions, in values
_FIRST_PIECE = 512
PIECE_UNIT = 64  # No piece is shorter.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVCache:
    """Keys and values of every layer.

    Attributes:
      keys: for each of the L layers, rotated keys in pieces.
      values: likewise, values; (B, K, U, H).
      lengths_B: int32, live positions of each row, in [0, S].
      key_axis: of the positions in keys, see `key_axis_on`.
    """

    keys: tuple[Pieces, ...]
    values: tuple[Pieces, ...]
    lengths_B: jax.Array
    key_axis: int = dataclasses.field(metadata={"static": True})

    @property
    def capacity(self) -> int:
        """S: tokens that fit into a row."""
        return sum(piece.shape[VALUE_AXIS] for piece in self.values[0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RecentTokens:
    """Tokens since the cache was written: as many in every row, R at most.

    Attributes:
      keys: for each of the L layers, rotated keys; axes as in the cache's pieces.
      values: likewise, values.
      count: int32 scalar, how many of R are there.
      rope_BRH: rotary tables of their positions, see `layers.rope_tables`.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    count: jax.Array
    rope_BRH: tuple[jax.Array, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Readers:
    """Which row reads which of P shared prefixes, N rows each at most.

    Attributes:
      rows_PN: int32, the rows that read a prefix; any row fills the rest.
      places_B: int32, where in the flat (P*N,) a row stands; P*N reads no prefix.
    """

    rows_PN: jax.Array
    places_B: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedPrefixes:
    """P prefixes, kept once each for all rows that read them.

    Attributes:
      cache: has a row for each prefix.
      readers: which row of the batch reads which.
    """

    cache: KVCache
    readers: Readers

    def row_lengths(self) -> jax.Array:
        """Returns int32, tokens of the prefix of each row of the batch, 0 for none."""
        P, N = self.readers.rows_PN.shape
        places_B = self.readers.places_B
        index_B = jnp.minimum(places_B // N, P - 1)
        return jnp.where(places_B < P * N, self.cache.lengths_B[index_B], 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefix:
    """What stands before a row's own first position.

    Attributes:
      cache: of shared prefixes.
      row: int32 scalar, of that cache.
      length: int32 scalar, how many of its tokens.
    """

    cache: KVCache
    row: jax.Array
    length: jax.Array


def key_axis_on(platform: str) -> int:
    """Returns which axis of keys positions take on "cpu", "tpu" or "gpu"."""
    return 3 if platform == "cpu" else 2


def piece_lengths(capacity: int, chunk_size: int) -> tuple[int, ...]:
    """Returns the lengths of the pieces: u, u, u, then half of what is before each.

    Pieces begin and end at multiples of `chunk_size`, so that a chunk of a prompt
    lies in one of them, and of 64: other widths make the CPU sum in another order,
    and a reply would depend on the capacity in its last bits. The last may be shorter:
    their sum is `capacity` rounded up accordingly.
    """
    unit = math.lcm(PIECE_UNIT, chunk_size)
    left = -(-capacity // unit) * unit
    first = max(1, _FIRST_PIECE // unit) * unit
    lengths: list[int] = []
    while left > 0:
        half = sum(lengths) // 2 // unit * unit
        lengths.append(min(left, max(first, half)))
        left -= lengths[-1]
    return tuple(lengths)


def piece_starts(pieces: Pieces, axis: int) -> list[int]:
    """Returns the position of the first token of each piece; positions are `axis`."""
    return list(itertools.accumulate((p.shape[axis] for p in pieces[:-1]), initial=0))


def init_cache(
    cfg: ModelConfig,
    batch: int,
    capacity: int,
    dtype: DTypeLike | None = None,
    *,
    chunk_size: int = 1,
    key_axis: int = 2,
) -> KVCache:
    """Returns an empty cache of `batch` rows of `capacity` tokens.

    Args:
      cfg: the model.
      batch: number of rows.
      capacity: tokens a row can hold at least; longer sequences must not be written.
      dtype: of keys and values; None takes the model's compute dtype.
      chunk_size: of `put_chunk`.
      key_axis: of the positions in keys, see `key_axis_on`.
    """
    dtype = cfg.compute_dtype if dtype is None else dtype
    lengths = piece_lengths(capacity, chunk_size)

    K, H = cfg.num_kv_heads, cfg.head_dim

    def empty(axis: int) -> tuple[Pieces, ...]:
        shapes = [(batch, K, U, H) if axis == 2 else (batch, K, H, U) for U in lengths]
        return tuple(
            tuple(jnp.zeros(shape, dtype) for shape in shapes)
            for _ in range(cfg.num_layers)
        )

    return KVCache(
        keys=empty(key_axis),
        values=empty(VALUE_AXIS),
        lengths_B=jnp.zeros(batch, jnp.int32),
        key_axis=key_axis,
    )


def grow(cache: KVCache, capacity: int, *, chunk_size: int = 1) -> KVCache:
    """Returns `cache` with room for `capacity` tokens a row; see `init_cache`."""
    lengths = piece_lengths(capacity, chunk_size)

    def grow_layer(pieces: Pieces, axis: int) -> Pieces:
        grown = [
            _pad(piece, axis, length)
            for piece, length in zip(pieces, lengths, strict=False)
        ]
        empty = jax.lax.slice_in_dim(pieces[0], 0, 0, axis=axis)
        more = [_pad(empty, axis, length) for length in lengths[len(pieces) :]]
        return (*grown, *more)

    return dataclasses.replace(
        cache,
        keys=tuple(grow_layer(pieces, cache.key_axis) for pieces in cache.keys),
        values=tuple(grow_layer(pieces, VALUE_AXIS) for pieces in cache.values),
    )


def _pad(piece: jax.Array, axis: int, length: int) -> jax.Array:
    widths = [(0, 0)] * piece.ndim
    widths[axis] = (0, length - piece.shape[axis])
    return jnp.pad(piece, widths)


def init_recent(
    cfg: ModelConfig,
    cache: KVCache,
    num_tokens: int,
    shared: SharedPrefixes | None = None,
) -> RecentTokens:
    """Returns room for tokens of every row, and none of them.

    Args:
      cfg: the model.
      cache: what comes before them.
      num_tokens: R.
      shared: prefixes that rows share; None for none.
    """

    def empty(pieces: Pieces, axis: int) -> jax.Array:
        shape = list(pieces[0].shape)
        shape[axis] = num_tokens
        return jnp.zeros(shape, pieces[0].dtype)

    first_B = cache.lengths_B
    if shared is not None:
        first_B += shared.row_lengths()
    positions_BR = first_B[:, None] + jnp.arange(num_tokens)
    return RecentTokens(
        keys=tuple(empty(pieces, cache.key_axis) for pieces in cache.keys),
        values=tuple(empty(pieces, VALUE_AXIS) for pieces in cache.values),
        count=jnp.int32(0),
        rope_BRH=rope_tables(positions_BR, cfg.head_dim, cfg.rope_theta),
    )
