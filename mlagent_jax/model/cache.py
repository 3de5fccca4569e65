"""Key/value cache of the decoder: fixed capacity, one row a sequence.

A row holds `lengths_B[b]` live positions at its start; what lies behind them is
garbage that attention masks. A layer's positions are cut into pieces that double in
length, arrays of their own: attention reads whole pieces, those that the longest
live row reaches, so that its cost follows what is live (within a factor of two) and
not what is allocated. Cutting the live part out of one array would copy it at every
step, which took two thirds of a decode step on CPU (BUILD_NOTES.md, "Speed").

The functions are pure; which sequence sits in which row, and when a row is full, is
the caller's business (sample/engine.py).

Axes: L layers, B rows, U positions of a piece, T new tokens, K key/value heads, H
head width.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlagent_jax.config import ModelConfig

Pieces = tuple[jax.Array, ...]  # of one layer, each (B, K, U, H)
_FIRST_PIECE = 256
_UNIT = 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVCache:
    """Keys and values of every layer.

    Attributes:
      keys: for each of the L layers, rotated keys in pieces.
      values: likewise, values.
      lengths_B: int32, live positions of each row, in [0, S].
    """

    keys: tuple[Pieces, ...]
    values: tuple[Pieces, ...]
    lengths_B: jax.Array

    @property
    def capacity(self) -> int:
        """S: tokens that fit into a row."""
        return sum(piece.shape[2] for piece in self.keys[0])


def piece_lengths(capacity: int, chunk_size: int) -> tuple[int, ...]:
    """Returns the lengths of the pieces: u, u, 2u, 4u, ...; the last may be shorter.

    Pieces begin and end at multiples of `chunk_size`, so that a chunk of a prompt
    lies in one of them, and of 64: other widths make the CPU sum in another order,
    and a reply would depend on the capacity in its last bits. Their sum is
    `capacity` rounded up accordingly.
    """
    unit = math.lcm(_UNIT, chunk_size)
    left = -(-capacity // unit) * unit
    first = max(1, _FIRST_PIECE // unit) * unit
    lengths: list[int] = []
    while left > 0:
        lengths.append(min(left, max(first, sum(lengths))))
        left -= lengths[-1]
    return tuple(lengths)


def piece_starts(pieces: Pieces) -> list[int]:
    """Returns the position of the first token of each piece."""
    return list(itertools.accumulate((p.shape[2] for p in pieces[:-1]), initial=0))


def init_cache(
    cfg: ModelConfig,
    batch: int,
    capacity: int,
    dtype: DTypeLike | None = None,
    *,
    chunk_size: int = 1,
) -> KVCache:
    """Returns an empty cache of `batch` rows of `capacity` tokens.

    Args:
      cfg: the model.
      batch: number of rows.
      capacity: tokens a row can hold at least; longer sequences must not be written.
      dtype: of keys and values; None takes the model's compute dtype.
      chunk_size: of `put_chunk`.
    """
    dtype = cfg.compute_dtype if dtype is None else dtype
    lengths = piece_lengths(capacity, chunk_size)

    def empty() -> tuple[Pieces, ...]:
        shapes = [(batch, cfg.num_kv_heads, U, cfg.head_dim) for U in lengths]
        return tuple(
            tuple(jnp.zeros(shape, dtype) for shape in shapes)
            for _ in range(cfg.num_layers)
        )

    lengths_B = jnp.zeros(batch, jnp.int32)
    return KVCache(keys=empty(), values=empty(), lengths_B=lengths_B)


def grow(cache: KVCache, capacity: int, *, chunk_size: int = 1) -> KVCache:
    """Returns `cache` with room for `capacity` tokens a row; see `init_cache`."""
    lengths = piece_lengths(capacity, chunk_size)

    def grow_layer(pieces: Pieces) -> Pieces:
        B, K, _, H = pieces[0].shape
        grown = [
            jnp.pad(piece, ((0, 0), (0, 0), (0, U - piece.shape[2]), (0, 0)))
            for piece, U in zip(pieces, lengths, strict=False)
        ]
        dtype = pieces[0].dtype
        more = [jnp.zeros((B, K, U, H), dtype) for U in lengths[len(pieces) :]]
        return (*grown, *more)

    return dataclasses.replace(
        cache,
        keys=tuple(map(grow_layer, cache.keys)),
        values=tuple(map(grow_layer, cache.values)),
    )


def put_tokens(pieces: Pieces, new_BKH: jax.Array, slots_B: jax.Array) -> Pieces:
    """Returns one layer's keys or values with one token a row written at `slots_B`."""
    rows_B = jnp.arange(len(slots_B))
    new_BKH = new_BKH.astype(pieces[0].dtype)
    starts = piece_starts(pieces)

    def scatter(pieces: Pieces, new_BKH: jax.Array) -> Pieces:
        written: list[jax.Array] = []
        for piece_BKUH, start in zip(pieces, starts, strict=True):
            U = piece_BKUH.shape[2]
            # Slots of other pieces go out of range, where they are dropped.
            places_B = jnp.where(slots_B < start, U, slots_B - start)
            put = piece_BKUH.at[rows_B, :, places_B]
            written.append(put.set(new_BKH, mode="drop"))
        return tuple(written)

    def loop(pieces: Pieces, new_BKH: jax.Array) -> Pieces:
        def put(row: jax.Array, pieces: Pieces) -> Pieces:
            token_1K1H = jax.lax.dynamic_index_in_dim(new_BKH, row)[:, :, None]
            slot = slots_B[row]
            return _blend(pieces, token_1K1H, starts, row, slot)

        return jax.lax.fori_loop(0, len(slots_B), put, pieces)

    # XLA's CPU backend runs a scatter as a loop too, a slower one.
    return jax.lax.platform_dependent(pieces, new_BKH, cpu=loop, default=scatter)


def put_chunk(
    pieces: Pieces, new_1KTH: jax.Array, row: jax.Array, start: jax.Array
) -> Pieces:
    """Returns one layer's keys or values with T tokens of one row from `start` on.

    `start` is a multiple of T = `chunk_size`.
    """
    new_1KTH = new_1KTH.astype(pieces[0].dtype)
    return _blend(pieces, new_1KTH, piece_starts(pieces), row, start)


def _blend(
    pieces: Pieces,
    new_1KTH: jax.Array,
    starts: Sequence[int],
    row: jax.Array,
    slot: jax.Array,
) -> Pieces:
    """Returns pieces with `new_1KTH` in the one that has `slot`; nowhere if none has.

    The others are written too, with what they hold there: a branch might copy them.
    """
    written: list[jax.Array] = []
    for piece_BKUH, start in zip(pieces, starts, strict=True):
        U = piece_BKUH.shape[2]
        is_here = (slot >= start) & (slot < start + U)
        place = (row, 0, jnp.where(is_here, slot - start, 0), 0)
        old_1KTH = jax.lax.dynamic_slice(piece_BKUH, place, new_1KTH.shape)
        token_1KTH = jnp.where(is_here, new_1KTH, old_1KTH)
        written.append(jax.lax.dynamic_update_slice(piece_BKUH, token_1KTH, place))
    return tuple(written)


def copy_prefix(
    cache: KVCache, source: jax.Array, row: jax.Array, num_tokens: jax.Array
) -> KVCache:
    """Returns `cache` with the first tokens of `source` in `row` too.

    Costs nothing where both are the same row. What follows the prefix in `row` is
    garbage afterwards; its length is not touched.
    """
    num_tokens = jnp.where(source == row, 0, num_tokens)

    def copy_layer(pieces: Pieces) -> Pieces:
        return tuple(
            _copy_row(piece, source, row, num_tokens - start)
            for piece, start in zip(pieces, piece_starts(pieces), strict=True)
        )

    return dataclasses.replace(
        cache,
        keys=tuple(map(copy_layer, cache.keys)),
        values=tuple(map(copy_layer, cache.values)),
    )


def _copy_row(
    piece_BKUH: jax.Array, source: jax.Array, row: jax.Array, num_tokens: jax.Array
) -> jax.Array:
    _, K, U, H = piece_BKUH.shape

    def copy(_: jax.Array, piece_BKUH: jax.Array) -> jax.Array:
        x_1KUH = jax.lax.dynamic_slice(piece_BKUH, (source, 0, 0, 0), (1, K, U, H))
        return jax.lax.dynamic_update_slice(piece_BKUH, x_1KUH, (row, 0, 0, 0))

    # A loop of one turn or none leaves the array in its place; a branch may not.
    num_turns = (num_tokens > 0).astype(jnp.int32)
    return jax.lax.fori_loop(0, num_turns, copy, piece_BKUH)
