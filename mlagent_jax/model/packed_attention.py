"""Attention of one long row that may hold many sequences, for XLA's CPU backend.

A block of queries meets the keys from the start of its first sequence to its own
end, rounded up to one of a few widths: what the program does follows the packing,
though its shapes do not. The loop over blocks compiles each width once.

Axes: T tokens of a row, Q queries of a block, S keys of a window, G query heads of
one key/value head, H head width, R = G*Q.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

NUM_BLOCKS = 8
_WIDTHS = (1, 2, 3, 4, 6, 8)  # of a window of keys, in blocks
_MASKED = -1e30  # Finite, so that a fully masked row gives no NaN.

# Sums of the gradients of keys and values
_Totals = tuple[jax.Array, jax.Array]
_Result = TypeVar("_Result")


def attend_block(
    q_GQH: jax.Array, k_SH: jax.Array, v_SH: jax.Array, mask_QS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns (out_GQH, log_sum_GQ) of some queries and the keys of a window.

    The group of queries is folded into rows, so that both products are plain ones.

    Args:
      q_GQH: rotated queries.
      k_SH: rotated keys.
      v_SH: values.
      mask_QS: which keys a query attends to.
    """
    scores_GQS = _scores(q_GQH, k_SH, mask_QS)
    max_GQ1 = jax.lax.stop_gradient(jnp.max(scores_GQS, axis=-1, keepdims=True))
    weights_GQS = jnp.exp(scores_GQS - max_GQ1)
    sum_GQ1 = jnp.sum(weights_GQS, axis=-1, keepdims=True)
    # Divided after the product: H numbers a query instead of S.
    sums_GQH = _product(weights_GQS.astype(v_SH.dtype), v_SH)
    out_GQH = (sums_GQH / sum_GQ1).astype(v_SH.dtype)
    return out_GQH, (max_GQ1 + jnp.log(sum_GQ1))[..., 0]


@jax.custom_vjp
def attend_row(
    q_GTH: jax.Array, k_TH: jax.Array, v_TH: jax.Array, segment_ids_T: jax.Array
) -> jax.Array:
    """Returns out_GTH: causal attention within each sequence of a row.

    The backward pass recomputes the scores, which is cheaper than storing them. It
    is written out: the derivative of a `switch` stores for every branch what only
    the one that is taken needs, and with the logarithm of its sum a row of weights
    comes back in one step.

    Args:
      q_GTH: rotated queries; `NUM_BLOCKS` divides T.
      k_TH: rotated keys.
      v_TH: values.
      segment_ids_T: sequences follow each other and have different ids.
    """
    return _attend_row(q_GTH, k_TH, v_TH, segment_ids_T)[0]


def _attend_row(
    q_GTH: jax.Array, k_TH: jax.Array, v_TH: jax.Array, segment_ids_T: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns (out_GTH, log_sum_GT)."""
    size = q_GTH.shape[1] // NUM_BLOCKS

    def attend(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        def attend_width(width: int) -> tuple[jax.Array, jax.Array]:
            return attend_block(
                _cut(q_GTH, start, size),
                *_windows(k_TH, v_TH, start, size, width),
                _mask(segment_ids_T, start, size, width),
            )

        return _switch_width(attend_width, segment_ids_T, start, size)

    out_CGQH, log_sum_CGQ = jax.lax.map(attend, jnp.arange(NUM_BLOCKS) * size)
    return _join(out_CGQH), _join(log_sum_CGQ)


def _forward(
    q_GTH: jax.Array, k_TH: jax.Array, v_TH: jax.Array, segment_ids_T: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    inputs = q_GTH, k_TH, v_TH, segment_ids_T
    out_GTH, log_sum_GT = _attend_row(*inputs)
    return out_GTH, (*inputs, out_GTH, log_sum_GT)


def _backward(
    residuals: tuple[jax.Array, ...], out_grad_GTH: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_GTH, k_TH, v_TH, segment_ids_T, out_GTH, log_sum_GT = residuals
    size = q_GTH.shape[1] // NUM_BLOCKS
    # What all weights of a query have in common in the gradient of a softmax.
    shared_GT = jnp.sum(
        out_grad_GTH.astype(jnp.float32) * out_GTH.astype(jnp.float32), axis=-1
    )

    def pull_back(totals: _Totals, start: jax.Array) -> tuple[_Totals, jax.Array]:
        def pull_back_width(width: int) -> tuple[_Totals, jax.Array]:
            q_grad_GQH, *parts = _pull_back_block(
                _cut(q_GTH, start, size),
                *_windows(k_TH, v_TH, start, size, width),
                _mask(segment_ids_T, start, size, width),
                _cut(log_sum_GT, start, size),
                _cut(out_grad_GTH, start, size),
                _cut(shared_GT, start, size),
            )
            first = _first_key(start, size, width)
            k_total_HT, v_total_HT = (
                jax.lax.dynamic_update_slice_in_dim(
                    total_HT,
                    part_HS
                    + jax.lax.dynamic_slice_in_dim(total_HT, first, width, axis=1),
                    first,
                    axis=1,
                )
                for total_HT, part_HS in zip(totals, parts, strict=True)
            )
            return (k_total_HT, v_total_HT), q_grad_GQH

        return _switch_width(pull_back_width, segment_ids_T, start, size)

    (k_grad_HT, v_grad_HT), q_grad_CGQH = jax.lax.scan(
        pull_back,
        (jnp.zeros_like(k_TH.T), jnp.zeros_like(v_TH.T)),
        jnp.arange(NUM_BLOCKS) * size,
    )
    return _join(q_grad_CGQH), k_grad_HT.T, v_grad_HT.T, None


attend_row.defvjp(_forward, _backward)


def _pull_back_block(
    q_GQH: jax.Array,
    k_SH: jax.Array,
    v_SH: jax.Array,
    mask_QS: jax.Array,
    log_sum_GQ: jax.Array,
    out_grad_GQH: jax.Array,
    shared_GQ: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients (q_GQH, k_HS, v_HS) of `attend_block`'s output.

    With weights P = exp(scores - log_sum) and D = out_grad: v' = P^T D,
    scores' = P * (D v^T - shared), q' = scores' k, k' = scores'^T q, the last two
    scaled as the scores are. Keys and values come out transposed: turning the large
    factor of a product instead nearly halves its speed.
    """
    H = q_GQH.shape[-1]
    weights_GQS = jnp.exp(_scores(q_GQH, k_SH, mask_QS) - log_sum_GQ[..., None])
    pull_GQS = _product(out_grad_GQH, v_SH.T) - shared_GQ[..., None]
    scores_grad_GQS = (weights_GQS * pull_GQS * H**-0.5).astype(q_GQH.dtype)
    scores_grad_RS = scores_grad_GQS.reshape(-1, len(k_SH))
    weights_RS = weights_GQS.astype(v_SH.dtype).reshape(-1, len(v_SH))
    return (
        (scores_grad_RS @ k_SH).reshape(q_GQH.shape),
        q_GQH.reshape(-1, H).T @ scores_grad_RS,
        out_grad_GQH.reshape(-1, H).T @ weights_RS,
    )


def _scores(q_GQH: jax.Array, k_SH: jax.Array, mask_QS: jax.Array) -> jax.Array:
    scores_GQS = _product(q_GQH, k_SH.T) * q_GQH.shape[-1] ** -0.5
    return jnp.where(mask_QS, scores_GQS, _MASKED)


def _product(a_GQX: jax.Array, b_XY: jax.Array) -> jax.Array:
    """Returns float32 product_GQY."""
    G, Q, X = a_GQX.shape
    product_RY = jnp.dot(
        a_GQX.reshape(G * Q, X), b_XY, preferred_element_type=jnp.float32
    )
    return product_RY.reshape(G, Q, -1)


def _join(x_CGQ: jax.Array) -> jax.Array:
    """Returns x_GT...: the blocks of queries one after the other."""
    G = x_CGQ.shape[1]
    return x_CGQ.swapaxes(0, 1).reshape(G, -1, *x_CGQ.shape[3:])


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


def _cut(x_GT: jax.Array, start: jax.Array, size: int) -> jax.Array:
    """Returns x_GQ...: what belongs to the queries of a block."""
    return jax.lax.dynamic_slice_in_dim(x_GT, start, size, axis=1)


def _windows(
    k_TH: jax.Array, v_TH: jax.Array, start: jax.Array, size: int, width: int
) -> tuple[jax.Array, jax.Array]:
    """Returns (k_SH, v_SH) of the window that ends with a block."""
    first = _first_key(start, size, width)
    return (
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
