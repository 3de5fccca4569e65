"""Attention of the newest tokens to a key/value cache, piece by piece.

Pieces (see `cache`) that no live row reaches are skipped, so the cost follows what is
in the cache and not what has been allocated. A piece without visible keys for a row
contributes exactly zero to it: a row's result does not depend, bit for bit, on the
capacity or on the other rows' lengths. Keys lie as the cache says (`key_axis`).

A prefix that rows share is read once for all of them (`attend_prefixes`), before what
each row has of its own; sums over both are joined as those of two pieces are.
What every row reads, its first piece and its newest tokens, has one softmax.

Scores and softmax are float32.

Axes: B rows, C rows of the cache, P shared prefixes, N places for rows that read one,
U positions of a piece or block, R recent tokens, T new tokens, K key/value heads, G
query heads of each, M queries of one key/value head (G*T or N*G), H head width.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlagent_jax.model.cache import VALUE_AXIS, Pieces, Readers, piece_starts

_MASKED = -1e30  # Finite, so that a query without visible keys gives no NaN.
_BLOCK = 256
_FEWEST_SUMMED = 4096

# Of every query so far: greatest score, sum of weights, weighted sum of values.
Sums = tuple[jax.Array, jax.Array, jax.Array]


class _Block(NamedTuple):
    """Keys (as the cache has them), values, and which of them each query sees."""

    k: jax.Array
    v_BKUH: jax.Array
    is_seen_BMU: jax.Array


def attend_tokens(
    q_BKGH: jax.Array,
    k_pieces: Pieces,
    v_pieces: Pieces,
    lengths_B: jax.Array,
    recent_k: jax.Array,
    recent_v_BKRH: jax.Array,
    newest: jax.Array,
    *,
    end: jax.Array,
    key_axis: int,
    sums: Sums | None = None,
) -> jax.Array:
    """Returns float32 out_BKGH of one new token a row.

    Args:
      q_BKGH: rotated queries.
      k_pieces: one layer's rotated keys in the cache.
      v_pieces: its values.
      lengths_B: int32, positions of the cache that a row sees.
      recent_k: recent keys, see `cache.RecentTokens`.
      recent_v_BKRH: recent values.
      newest: int32 scalar, the last recent token that every row sees: the new one.
      end: int32 scalar; no row that matters sees this position of the cache or a
        later one. Those that see more get finite garbage.
      key_axis: of the positions in keys.
      sums: over what came before the cache, from `attend_prefixes`; None for nothing.
    """
    B, G = q_BKGH.shape[0], q_BKGH.shape[2]
    last_BM = jnp.broadcast_to(lengths_B[:, None] - 1, (B, G))
    newest_BM = jnp.broadcast_to(newest, (B, G))
    blocks = [
        _block(k_pieces[0], v_pieces[0], last_BM),
        _block(recent_k, recent_v_BKRH, newest_BM),
    ]
    sums = _add_blocks(sums, q_BKGH, blocks, key_axis=key_axis)
    sums = _add_pieces(
        sums, q_BKGH, k_pieces, v_pieces, last_BM, end=end, key_axis=key_axis
    )
    return _finish(sums)


def attend_prefixes(
    q_BKGH: jax.Array,
    k_pieces: Pieces,
    v_pieces: Pieces,
    lengths_P: jax.Array,
    readers: Readers,
    *,
    end: jax.Array,
    key_axis: int,
) -> Sums:
    """Returns every row's sums over the prefix that it shares with others.

    Keys and values of a prefix are read once for all of its rows (as Hydragen does,
    arXiv 2402.05099), so that the products have N*G queries a head and not G.

    Args:
      q_BKGH: rotated queries.
      k_pieces: one layer's rotated keys of the prefixes.
      v_pieces: their values.
      lengths_P: int32, positions of each.
      readers: which row reads which.
      end: int32 scalar; no prefix that matters is longer.
      key_axis: of the positions in keys.
    """
    K, G, H = q_BKGH.shape[1:]
    P, N = readers.rows_PN.shape
    q_PKMH = q_BKGH[readers.rows_PN].swapaxes(1, 2).reshape(P, K, N * G, H)
    last_PM = jnp.broadcast_to(lengths_P[:, None] - 1, (P, N * G))
    first = _block(k_pieces[0], v_pieces[0], last_PM)
    sums_PKM = _add_pieces(
        _add_blocks(None, q_PKMH, [first], key_axis=key_axis),
        q_PKMH,
        k_pieces,
        v_pieces,
        last_PM,
        end=end,
        key_axis=key_axis,
    )
    has_prefix_B = readers.places_B < P * N

    def to_rows(x_PKM: jax.Array, empty_BKG: jax.Array) -> jax.Array:
        tail = empty_BKG.shape[3:]
        x_PNKG = x_PKM.reshape(P, K, N, G, *tail).swapaxes(1, 2)
        x_BKG = jnp.take(
            x_PNKG.reshape(P * N, K, G, *tail), readers.places_B, axis=0, mode="clip"
        )
        is_kept = jnp.expand_dims(has_prefix_B, range(1, x_BKG.ndim))
        return jnp.where(is_kept, x_BKG, empty_BKG)

    return jax.tree.map(to_rows, sums_PKM, _start(q_BKGH))


def _add_pieces(
    sums: Sums,
    q_BKMH: jax.Array,
    k_pieces: Pieces,
    v_pieces: Pieces,
    last_BM: jax.Array,
    *,
    end: jax.Array,
    key_axis: int,
) -> Sums:
    """Returns the sums with all pieces but the first that begin before `end`."""
    starts = piece_starts(v_pieces, VALUE_AXIS)
    for start, k, v_BKUH in zip(starts[1:], k_pieces[1:], v_pieces[1:], strict=True):

        def add(
            sums: Sums, k: jax.Array, v_BKUH: jax.Array, start: int = start
        ) -> Sums:
            block = _block(k, v_BKUH, last_BM, start)
            return _add_blocks(sums, q_BKMH, [block], key_axis=key_axis)

        sums = jax.lax.cond(end > start, add, lambda sums, *_: sums, sums, k, v_BKUH)
    return sums


def attend_chunk(
    q_1KMH: jax.Array,
    k_pieces: Pieces,
    v_pieces: Pieces,
    last_M: jax.Array,
    *,
    end: jax.Array,
    row: jax.Array,
    key_axis: int,
    prefix: tuple[Pieces, Pieces, jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Returns float32 out_1KMH of a chunk of one row's prompt.

    Cutting out blocks costs little here, beside products of many queries.

    Args:
      q_1KMH: rotated queries.
      k_pieces: one layer's rotated keys, those of the chunk included.
      v_pieces: its values.
      last_M: int32, the last position that each query sees.
      end: int32 scalar, one more than the greatest of them.
      row: int32 scalar, of the cache.
      key_axis: of the positions in keys.
      prefix: what stands before the row's first position: the layer's keys and values
        of shared prefixes, which of them, and its length (int32 scalars).
    """
    sums = _start(q_1KMH)
    parts = [(k_pieces, v_pieces, row, end, last_M)]
    if prefix is not None:
        k_prefixes, v_prefixes, index, length = prefix
        all_M = jnp.full_like(last_M, length - 1)
        parts = [(k_prefixes, v_prefixes, index, length, all_M), *parts]
    for keys, values, place, part_end, seen_M in parts:
        for start, k, v_CKUH in zip(
            piece_starts(values, VALUE_AXIS), keys, values, strict=True
        ):
            sums = _add_piece(
                sums,
                q_1KMH,
                k,
                v_CKUH,
                seen_M,
                start=start,
                end=part_end,
                row=place,
                key_axis=key_axis,
            )
    return _finish(sums)


def _add_piece(
    sums: Sums,
    q_1KMH: jax.Array,
    k: jax.Array,
    v_CKUH: jax.Array,
    last_M: jax.Array,
    *,
    start: int,
    end: jax.Array,
    row: jax.Array,
    key_axis: int,
) -> Sums:
    """Returns the sums with the part of a piece before `end`, block by block."""
    length = v_CKUH.shape[VALUE_AXIS]
    U = min(_BLOCK, length)

    def add(block: jax.Array | int, sums: Sums) -> Sums:
        # The last block is moved back to fit; what it repeats is masked.
        first = jnp.minimum(block * U, length - U)

        def cut(x: jax.Array, axis: int) -> jax.Array:
            place = [row, 0, 0, 0]
            if (
                length > U and length % U == 0
            ):  # as an axis of blocks, see `cache_writes`
                place.insert(axis, block)
                shape = (*x.shape[:axis], length // U, U, *x.shape[axis + 1 :])
                sizes = (1, *shape[1:axis], 1, *shape[axis + 1 :])
                one = jax.lax.dynamic_slice(x.reshape(shape), place, sizes)
                return jnp.squeeze(one, axis)
            place[axis] = first
            sizes = (1, *x.shape[1:axis], U, *x.shape[axis + 1 :])
            return jax.lax.dynamic_slice(x, place, sizes)

        piece = _block(
            cut(k, key_axis),
            cut(v_CKUH, VALUE_AXIS),
            last_M[None],
            start + first,
            num_repeated=block * U - first,
        )
        return _add_blocks(sums, q_1KMH, [piece], key_axis=key_axis)

    if length > U:
        num_blocks = jnp.clip(-(-(end - start) // U), 0, -(-length // U))
        return jax.lax.fori_loop(0, num_blocks, add, sums)
    # A loop around a single block makes XLA copy the piece on CPU.
    if start == 0:
        return add(0, sums)
    return jax.lax.cond(end > start, lambda c: add(0, c), lambda c: c, sums)


def _start(q_BKMH: jax.Array) -> Sums:
    shape = q_BKMH.shape[:3]
    return (
        jnp.full(shape, _MASKED, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(q_BKMH.shape, jnp.float32),
    )


def _block(
    k: jax.Array,
    v_BKUH: jax.Array,
    last_BM: jax.Array,
    start: jax.Array | int = 0,
    num_repeated: jax.Array | int = 0,
) -> _Block:
    """Returns positions from `start` on, but the first repeated ones."""
    places_U = jnp.arange(v_BKUH.shape[VALUE_AXIS])
    is_seen_BMU = start + places_U <= last_BM[:, :, None]
    return _Block(k, v_BKUH, is_seen_BMU & (places_U >= num_repeated))


def _add_blocks(
    sums: Sums | None, q_BKMH: jax.Array, blocks: Sequence[_Block], *, key_axis: int
) -> Sums:
    """Returns the sums, None for those of nothing, with all blocks at once.

    If a query sees nothing of any block, then what they add is taken times zero when
    it sees something in a later one.
    """
    dtype, H = q_BKMH.dtype, q_BKMH.shape[-1]

    def scores(block: _Block) -> jax.Array:
        scores_BKMU = jnp.einsum(
            "BKMH,BKHU->BKMU",
            q_BKMH,
            jnp.moveaxis(block.k, key_axis, 3).astype(dtype),
            preferred_element_type=jnp.float32,
        )
        return jnp.where(block.is_seen_BMU[:, None], scores_BKMU * H**-0.5, _MASKED)

    def weighted(weights_BKMU: jax.Array, block: _Block) -> jax.Array:
        return jnp.einsum(
            "BKMU,BKUH->BKMH",
            weights_BKMU.astype(dtype),
            block.v_BKUH.astype(dtype),
            preferred_element_type=jnp.float32,
        )

    all_scores = [scores(block) for block in blocks]
    greatest = [jnp.max(scores_BKMU, axis=-1) for scores_BKMU in all_scores]
    if sums is not None:
        greatest.append(sums[0])
    max_BKM = functools.reduce(jnp.maximum, greatest)
    all_weights = [jnp.exp(scores - max_BKM[..., None]) for scores in all_scores]
    sum_BKM = functools.reduce(jnp.add, map(_sum, all_weights))
    out_BKMH = functools.reduce(jnp.add, map(weighted, all_weights, blocks))
    if sums is not None:
        decay_BKM = jnp.exp(sums[0] - max_BKM)
        sum_BKM += sums[1] * decay_BKM
        out_BKMH += sums[2] * decay_BKM[..., None]
    return max_BKM, sum_BKM, out_BKMH


def _sum(weights_BKMU: jax.Array) -> jax.Array:
    """Returns sums over U whose bits zeros at the end do not change.

    On CPU XLA sums arrays of 4,096 numbers or more in another order than smaller ones,
    which are filled up for that reason.
    """
    *leading, U = weights_BKMU.shape
    missing = max(0, -(-_FEWEST_SUMMED // math.prod(leading)) - U)

    def sum_filled(weights_BKMU: jax.Array) -> jax.Array:
        widths = [(0, 0)] * len(leading) + [(0, missing)]
        return jnp.sum(jnp.pad(weights_BKMU, widths), axis=-1)

    sums_BKM: jax.Array = jax.lax.platform_dependent(
        weights_BKMU, cpu=sum_filled, default=lambda x: jnp.sum(x, axis=-1)
    )
    return sums_BKM


def _finish(sums: Sums) -> jax.Array:
    _, sum_BKM, out_BKMH = sums
    return out_BKMH / sum_BKM[..., None]
