"""Writes into the key/value cache: new tokens, chunks of a prompt, copied prefixes.

Each in the form that leaves the pieces where they lie in memory, which is another one
on CPU than on TPU.

Axes: L layers, B rows, U positions of a piece, T new tokens, K key/value heads, H
head width.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mlagent_jax.model.cache import (
    PIECE_UNIT,
    VALUE_AXIS,
    KVCache,
    Pieces,
    RecentTokens,
    piece_starts,
)


def put_newest(
    recent: jax.Array, new_BKH: jax.Array, index: jax.Array, axis: int
) -> jax.Array:
    """Returns one layer's recent keys or values with one more token in every row."""
    new = jnp.expand_dims(new_BKH.astype(recent.dtype), axis)
    return jax.lax.dynamic_update_slice_in_dim(recent, new, index, axis)


def keep_recent(cache: KVCache, recent: RecentTokens, num_B: jax.Array) -> KVCache:
    """Returns `cache` with the first `num_B` recent tokens of each row behind its own.

    The other recent tokens become garbage behind the live positions.
    """
    slots_B = cache.lengths_B
    keys = [
        _put_tokens(pieces, new, slots_B, cache.key_axis)
        for pieces, new in zip(cache.keys, recent.keys, strict=True)
    ]
    values = [
        _put_tokens(pieces, new, slots_B, VALUE_AXIS)
        for pieces, new in zip(cache.values, recent.values, strict=True)
    ]
    return dataclasses.replace(
        cache, keys=tuple(keys), values=tuple(values), lengths_B=slots_B + num_B
    )


def _put_tokens(
    pieces: Pieces, new: jax.Array, slots_B: jax.Array, axis: int
) -> Pieces:
    """Returns pieces with T new tokens a row from `slots_B` on, where they lie."""

    def windows(pieces: Pieces, new: jax.Array) -> Pieces:
        return put_windows(pieces, new, slots_B, axis)

    def scatter(pieces: Pieces, new: jax.Array) -> Pieces:
        return scatter_tokens(pieces, new, slots_B, axis)

    # A scatter is a loop over tokens on CPU; a TPU lays pieces out anew for windows.
    return jax.lax.platform_dependent(pieces, new, cpu=windows, default=scatter)


def scatter_tokens(
    pieces: Pieces, new: jax.Array, slots_B: jax.Array, axis: int
) -> Pieces:
    """The same as `put_windows`, one token at a time."""
    B, T = len(slots_B), new.shape[axis]
    rows_BT = jnp.broadcast_to(jnp.arange(B)[:, None], (B, T))
    slots_BT = slots_B[:, None] + jnp.arange(T)
    new_BTKH = jnp.moveaxis(new, axis, 1)
    written: list[jax.Array] = []
    for piece, start in zip(pieces, piece_starts(pieces, axis), strict=True):
        # Slots of other pieces go out of range, where they are dropped.
        places_BT = jnp.where(slots_BT < start, piece.shape[axis], slots_BT - start)
        put = piece.at[(rows_BT, *[slice(None)] * (axis - 1), places_BT)]
        written.append(put.set(new_BTKH, mode="drop"))
    return tuple(written)


def put_windows(
    pieces: Pieces, new: jax.Array, slots_B: jax.Array, axis: int
) -> Pieces:
    """Returns pieces with T new tokens a row from `slots_B` on, as far as they reach.

    Args:
      pieces: of one layer.
      new: its new keys or values, T along `axis`.
      slots_B: int32, position of the first token of each row.
      axis: of the positions.
    """
    for first in range(0, new.shape[axis], PIECE_UNIT):
        end = min(first + PIECE_UNIT, new.shape[axis])
        part = jax.lax.slice_in_dim(new, first, end, axis=axis)
        pieces = _put_window(pieces, part, slots_B + first, axis)
    return pieces


def _put_window(
    pieces: Pieces, new: jax.Array, slots_B: jax.Array, axis: int
) -> Pieces:
    T, along = new.shape[axis], axis - 1
    padded = jnp.concatenate([jnp.zeros_like(new), new, jnp.zeros_like(new)], axis)

    def put(piece: jax.Array, padded: jax.Array, slot: jax.Array) -> jax.Array:
        # T positions of one row, moved so that they lie in the piece.
        first = jnp.clip(slot, 0, piece.shape[along] - T)
        shift = jnp.clip(first - slot, -T, T)
        old = jax.lax.dynamic_slice_in_dim(piece, first, T, along)
        moved = jax.lax.dynamic_slice_in_dim(padded, T + shift, T, along)
        index_T = jnp.arange(T) + shift
        other_axes = [axis for axis in range(old.ndim) if axis != along]
        is_new = jnp.expand_dims((index_T >= 0) & (index_T < T), other_axes)
        window = jnp.where(is_new, moved, old)
        return jax.lax.dynamic_update_slice_in_dim(piece, window, first, along)

    return tuple(
        jax.vmap(put)(piece, padded, slots_B - start)
        for piece, start in zip(pieces, piece_starts(pieces, axis), strict=True)
    )


def put_chunk(
    pieces: Pieces, new: jax.Array, row: jax.Array, start: jax.Array, axis: int
) -> Pieces:
    """Returns one layer's keys or values with T tokens of one row from `start` on.

    Args:
      pieces: of the layer.
      new: the tokens' keys or values, T along `axis`.
      row: int32 scalar.
      start: int32 scalar, a multiple of T = `chunk_size`.
      axis: of the positions.
    """
    new = new.astype(pieces[0].dtype)

    def whole(pieces: Pieces, new: jax.Array) -> Pieces:
        return _put(pieces, new, row, start, axis)

    def by_chunks(pieces: Pieces, new: jax.Array) -> Pieces:
        return put_by_chunks(pieces, new, row, start, axis)

    # A CPU copies an array that is seen with another axis.
    return jax.lax.platform_dependent(pieces, new, cpu=whole, default=by_chunks)


def put_by_chunks(
    pieces: Pieces, new: jax.Array, row: jax.Array, start: jax.Array, axis: int
) -> Pieces:
    """The same as `put_chunk`, on pieces with an axis of chunks.

    A TPU lays an array out anew to write at a place that need not be a multiple of
    its tiles.
    """
    T = new.shape[axis]
    split = tuple(
        piece.reshape(*piece.shape[:axis], -1, T, *piece.shape[axis + 1 :])
        for piece in pieces
    )
    written = _put(split, jnp.expand_dims(new, axis), row, start // T, axis)
    return tuple(x.reshape(p.shape) for x, p in zip(written, pieces, strict=True))


def _put(
    pieces: Pieces, new: jax.Array, row: jax.Array, start: jax.Array, axis: int
) -> Pieces:
    """Returns pieces with `new` in the one that has place `start` along `axis`."""
    written: list[jax.Array] = []
    # The others are written too, with what they hold: a branch might copy them.
    for piece, first in zip(pieces, piece_starts(pieces, axis), strict=True):
        is_here = (start >= first) & (start < first + piece.shape[axis])
        place: list[jax.Array | int] = [row, *[0] * (piece.ndim - 1)]
        place[axis] = jnp.where(is_here, start - first, 0)
        old = jax.lax.dynamic_slice(piece, place, new.shape)
        chunk = jnp.where(is_here, new, old)
        written.append(jax.lax.dynamic_update_slice(piece, chunk, place))
    return tuple(written)


def copy_prefix(
    cache: KVCache, source: jax.Array, row: jax.Array, num_tokens: jax.Array
) -> KVCache:
    """Returns `cache` with the first tokens of `source` in `row` too.

    Costs nothing where both are the same row. What follows the prefix in `row` is
    garbage afterwards; its length is not touched.
    """
    num_tokens = jnp.where(source == row, 0, num_tokens)

    def copy_layer(pieces: Pieces, axis: int) -> Pieces:
        return tuple(
            _copy_row(piece, source, row, num_tokens - start)
            for piece, start in zip(pieces, piece_starts(pieces, axis), strict=True)
        )

    return dataclasses.replace(
        cache,
        keys=tuple(copy_layer(pieces, cache.key_axis) for pieces in cache.keys),
        values=tuple(copy_layer(pieces, VALUE_AXIS) for pieces in cache.values),
    )


def _copy_row(
    piece: jax.Array, source: jax.Array, row: jax.Array, num_tokens: jax.Array
) -> jax.Array:
    def copy(_: jax.Array, piece: jax.Array) -> jax.Array:
        x = jax.lax.dynamic_slice_in_dim(piece, source, 1)
        return jax.lax.dynamic_update_slice_in_dim(piece, x, row, 0)

    # A loop of one turn or none leaves the array in its place; a branch may not.
    num_turns = (num_tokens > 0).astype(jnp.int32)
    return jax.lax.fori_loop(0, num_turns, copy, piece)
