"""Attention of the newest tokens to a key/value cache, piece by piece.

Pieces (see `cache`) that no live row reaches are skipped, so the cost follows what is
in the cache and not what has been allocated. A piece without visible keys for a row
contributes exactly zero to it: a row's result does not depend, bit for bit, on the
capacity or on the other rows' lengths. Keys lie as the cache says (`key_axis`).

Scores and softmax are float32.

Axes: B rows, C rows of the cache, U positions of a piece or block, R recent tokens, T
new tokens, K
key/value heads, G query heads of each, M = G*T queries of one key/value head, H head
width.
"""

import jax
import jax.numpy as jnp

from mlagent_jax.model.cache import VALUE_AXIS, Pieces, piece_starts

_MASKED = -1e30  # Finite, so that a query without visible keys gives no NaN.
_BLOCK = 256

# Of every query so far: greatest score, sum of weights, weighted sum of values.
_Carry = tuple[jax.Array, jax.Array, jax.Array]


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
    """
    B, G = q_BKGH.shape[0], q_BKGH.shape[2]
    last_BM = jnp.broadcast_to(lengths_B[:, None] - 1, (B, G))
    carry = _start(q_BKGH)
    for start, k, v_BKUH in zip(
        piece_starts(v_pieces, VALUE_AXIS), k_pieces, v_pieces, strict=True
    ):

        def add(
            carry: _Carry, k: jax.Array, v_BKUH: jax.Array, start: int = start
        ) -> _Carry:
            return _add_block(
                carry, q_BKGH, k, v_BKUH, last_BM, start, key_axis=key_axis
            )

        if start == 0:
            carry = add(carry, k, v_BKUH)
        else:
            carry = jax.lax.cond(
                end > start, add, lambda carry, *_: carry, carry, k, v_BKUH
            )
    # Last, since each row sees one of these: what a row without any visible position
    # has added up until here is taken times zero.
    last_BM = jnp.broadcast_to(newest, (B, G))
    carry = _add_block(
        carry, q_BKGH, recent_k, recent_v_BKRH, last_BM, 0, key_axis=key_axis
    )
    return _finish(carry)


def attend_chunk(
    q_1KMH: jax.Array,
    k_pieces: Pieces,
    v_pieces: Pieces,
    last_M: jax.Array,
    *,
    end: jax.Array,
    row: jax.Array,
    key_axis: int,
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
    """
    carry = _start(q_1KMH)
    for start, k, v_CKUH in zip(
        piece_starts(v_pieces, VALUE_AXIS), k_pieces, v_pieces, strict=True
    ):
        carry = _add_piece(
            carry,
            q_1KMH,
            k,
            v_CKUH,
            last_M,
            start=start,
            end=end,
            row=row,
            key_axis=key_axis,
        )
    return _finish(carry)


def _add_piece(
    carry: _Carry,
    q_1KMH: jax.Array,
    k: jax.Array,
    v_CKUH: jax.Array,
    last_M: jax.Array,
    *,
    start: int,
    end: jax.Array,
    row: jax.Array,
    key_axis: int,
) -> _Carry:
    """Returns the sums with the part of a piece before `end`, block by block."""
    length = v_CKUH.shape[VALUE_AXIS]
    U = min(_BLOCK, length)

    def add(block: jax.Array | int, carry: _Carry) -> _Carry:
        # The last block is moved back to fit; what it repeats is masked.
        first = jnp.minimum(block * U, length - U)

        def cut(x: jax.Array, axis: int) -> jax.Array:
            place = [row, 0, 0, 0]
            if (
                length > U and length % U == 0
            ):  # as an axis of blocks, see `cache.put_chunk`
                place.insert(axis, block)
                shape = (*x.shape[:axis], length // U, U, *x.shape[axis + 1 :])
                sizes = (1, *shape[1:axis], 1, *shape[axis + 1 :])
                one = jax.lax.dynamic_slice(x.reshape(shape), place, sizes)
                return jnp.squeeze(one, axis)
            place[axis] = first
            sizes = (1, *x.shape[1:axis], U, *x.shape[axis + 1 :])
            return jax.lax.dynamic_slice(x, place, sizes)

        return _add_block(
            carry,
            q_1KMH,
            cut(k, key_axis),
            cut(v_CKUH, VALUE_AXIS),
            last_M[None],
            start + first,
            num_repeated=block * U - first,
            key_axis=key_axis,
        )

    if length > U:
        num_blocks = jnp.clip(-(-(end - start) // U), 0, -(-length // U))
        return jax.lax.fori_loop(0, num_blocks, add, carry)
    # A loop around a single block makes XLA copy the piece on CPU.
    if start == 0:
        return add(0, carry)
    return jax.lax.cond(end > start, lambda c: add(0, c), lambda c: c, carry)


def _start(q_BKMH: jax.Array) -> _Carry:
    shape = q_BKMH.shape[:3]
    return (
        jnp.full(shape, _MASKED, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(q_BKMH.shape, jnp.float32),
    )


def _add_block(
    carry: _Carry,
    q_BKMH: jax.Array,
    k: jax.Array,
    v_BKUH: jax.Array,
    last_BM: jax.Array,
    start: jax.Array | int,
    num_repeated: jax.Array | int = 0,
    *,
    key_axis: int,
) -> _Carry:
    """Returns the sums with positions from `start` on, but the first repeated ones."""
    max_BKM, sum_BKM, out_BKMH = carry
    U, H = v_BKUH.shape[2:]
    is_seen_BMU = start + jnp.arange(U) <= last_BM[:, :, None]
    is_seen_BMU &= jnp.arange(U) >= num_repeated
    scores_BKMU = jnp.einsum(
        "BKMH,BKHU->BKMU",
        q_BKMH,
        jnp.moveaxis(k, key_axis, 3).astype(q_BKMH.dtype),
        preferred_element_type=jnp.float32,
    )
    scores_BKMU = jnp.where(is_seen_BMU[:, None], scores_BKMU * H**-0.5, _MASKED)
    new_max_BKM = jnp.maximum(max_BKM, jnp.max(scores_BKMU, axis=-1))
    weights_BKMU = jnp.exp(scores_BKMU - new_max_BKM[..., None])
    decay_BKM = jnp.exp(max_BKM - new_max_BKM)
    added_BKMH = jnp.einsum(
        "BKMU,BKUH->BKMH",
        weights_BKMU.astype(q_BKMH.dtype),
        v_BKUH.astype(q_BKMH.dtype),
        preferred_element_type=jnp.float32,
    )
    return (
        new_max_BKM,
        sum_BKM * decay_BKM + jnp.sum(weights_BKMU, axis=-1),
        out_BKMH * decay_BKM[..., None] + added_BKMH,
    )


def _finish(carry: _Carry) -> jax.Array:
    _, sum_BKM, out_BKMH = carry
    return out_BKMH / sum_BKM[..., None]
