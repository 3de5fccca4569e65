"""Attention of one long row that may hold many sequences, for XLA's CPU backend.

A block of queries meets the keys from the start of its first sequence to its own
end, rounded up to one of a few widths: what the program does follows the packing,
though its shapes do not. The loop over blocks compiles each width once.

Axes: T tokens of a row, Q queries of a block, S keys of a window, G query heads of
one key/value head, H head width.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

NUM_BLOCKS = 8
_WIDTHS = (1, 2, 3, 4, 6, 8)  # of a window of keys, in blocks

# Sums of the gradients of keys and values
_Totals = tuple[jax.Array, jax.Array]
_Result = TypeVar("_Result")
# (q_GQH, k_SH, v_SH, mask_QS) -> out_GQH
AttendBlock = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend_row(
    attend_block: AttendBlock,
    q_GTH: jax.Array,
    k_TH: jax.Array,
    v_TH: jax.Array,
    segment_ids_T: jax.Array,
) -> jax.Array:
    """Returns out_GTH: causal attention within each sequence of a row.

    The backward pass recomputes the scores, which is cheaper than storing them. It
    is written out, because the derivative of a `switch` stores for every branch
    what only the one that is taken needs.

    Args:
      attend_block: attention of some queries to some keys under a mask.
      q_GTH: rotated queries; `NUM_BLOCKS` divides T.
      k_TH: rotated keys.
      v_TH: values.
      segment_ids_T: sequences follow each other and have different ids.
    """
    size = q_GTH.shape[1] // NUM_BLOCKS

    def attend(start: jax.Array) -> jax.Array:
        def attend_width(width: int) -> jax.Array:
            return attend_block(
                *_cut(q_GTH, k_TH, v_TH, start, size, width),
                _mask(segment_ids_T, start, size, width),
            )

        return _switch_width(attend_width, segment_ids_T, start, size)

    out_CGQH = jax.lax.map(attend, jnp.arange(NUM_BLOCKS) * size)
    return out_CGQH.swapaxes(0, 1).reshape(q_GTH.shape)


def _forward(
    attend_block: AttendBlock,
    q_GTH: jax.Array,
    k_TH: jax.Array,
    v_TH: jax.Array,
    segment_ids_T: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    inputs = q_GTH, k_TH, v_TH, segment_ids_T
    return attend_row(attend_block, *inputs), inputs


def _backward(
    attend_block: AttendBlock, inputs: tuple[jax.Array, ...], out_grad_GTH: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_GTH, k_TH, v_TH, segment_ids_T = inputs
    size = q_GTH.shape[1] // NUM_BLOCKS

    def pull_back(totals: _Totals, start: jax.Array) -> tuple[_Totals, jax.Array]:
        grad_GQH = jax.lax.dynamic_slice_in_dim(out_grad_GTH, start, size, axis=1)

        def pull_back_width(width: int) -> tuple[_Totals, jax.Array]:
            mask_QS = _mask(segment_ids_T, start, size, width)
            _, vjp = jax.vjp(
                lambda q_GQH, k_SH, v_SH: attend_block(q_GQH, k_SH, v_SH, mask_QS),
                *_cut(q_GTH, k_TH, v_TH, start, size, width),
            )
            q_grad_GQH, *parts = vjp(grad_GQH)
            first = _first_key(start, size, width)
            k_total_TH, v_total_TH = (
                jax.lax.dynamic_update_slice_in_dim(
                    total_TH,
                    part_SH
                    + jax.lax.dynamic_slice_in_dim(total_TH, first, len(part_SH)),
                    first,
                    axis=0,
                )
                for total_TH, part_SH in zip(totals, parts, strict=True)
            )
            return (k_total_TH, v_total_TH), q_grad_GQH

        return _switch_width(pull_back_width, segment_ids_T, start, size)

    totals, q_grad_CGQH = jax.lax.scan(
        pull_back,
        (jnp.zeros_like(k_TH), jnp.zeros_like(v_TH)),
        jnp.arange(NUM_BLOCKS) * size,
    )
    return q_grad_CGQH.swapaxes(0, 1).reshape(q_GTH.shape), *totals, None


attend_row.defvjp(_forward, _backward)


def _switch_width(
    run: Callable[[int], _Result], segment_ids_T: jax.Array, start: jax.Array, size: int
) -> _Result:
    """Returns `run(width)` of the smallest width that reaches all keys of a block."""
    first_key = jnp.argmax(segment_ids_T == segment_ids_T[start])
    num_keys = start + size - first_key
    choice = jnp.sum(num_keys > size * jnp.array(_WIDTHS))
    branches = [partial(run, width * size) for width in _WIDTHS]
    return jax.lax.switch(choice, branches)


def _first_key(start: jax.Array, size: int, width: int) -> jax.Array:
    """Returns where a window that ends with a block begins, at least 0."""
    return jnp.maximum(start + size - width, 0)


def _cut(
    q_GTH: jax.Array,
    k_TH: jax.Array,
    v_TH: jax.Array,
    start: jax.Array,
    size: int,
    width: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (q_GQH, k_SH, v_SH) of a block and its window."""
    first = _first_key(start, size, width)
    return (
        jax.lax.dynamic_slice_in_dim(q_GTH, start, size, axis=1),
        jax.lax.dynamic_slice_in_dim(k_TH, first, width),
        jax.lax.dynamic_slice_in_dim(v_TH, first, width),
    )


def _mask(
    segment_ids_T: jax.Array, start: jax.Array, size: int, width: int
) -> jax.Array:
    """Returns mask_QS: the own segment, up to the query itself."""
    first = _first_key(start, size, width)
    places_Q, places_S = start + jnp.arange(size), first + jnp.arange(width)
    ids_Q = jax.lax.dynamic_slice_in_dim(segment_ids_T, start, size)
    ids_S = jax.lax.dynamic_slice_in_dim(segment_ids_T, first, width)
    return (places_Q[:, None] >= places_S) & (ids_Q[:, None] == ids_S)
