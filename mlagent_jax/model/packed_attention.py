"""Attention within the sequences of long rows, for XLA's CPU backend.

A block of queries meets the keys from the start of its first sequence to its own
end, rounded up to one of a few widths: what the program does follows the packing,
though its shapes do not. The loop over blocks compiles each width once.

Several rows go side by side: a product over a batch of them keeps all cores busy,
where one row's is too small to share. They meet the widest window that one of them
needs. No factor of a product is turned in it: XLA reaches half of its speed then.

Axes: R rows (each one key/value head of a row of the batch), T their tokens, Q
queries of a block, S keys of a window, G query heads of one key/value head, M = G*Q,
H head width.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

_MOST_BLOCKS = 8
_LEAST_QUERIES = 64
_WIDTHS = (1, 2, 3, 4, 6, 8)  # of a window of keys, in blocks
_MASKED = -1e30  # Finite, so that a fully masked row gives no NaN.

# Sums of the gradients of keys and values
_Totals = tuple[jax.Array, jax.Array]
_Result = TypeVar("_Result")


def num_blocks(num_tokens: int) -> int:
    """Returns in how many blocks `attend_rows` takes the queries of a row."""
    return min(_MOST_BLOCKS, -(-num_tokens // _LEAST_QUERIES))


@jax.custom_vjp
def attend_rows(
    q_RGTH: jax.Array, k_RTH: jax.Array, v_RTH: jax.Array, segment_ids_RT: jax.Array
) -> jax.Array:
    """Returns out_RGTH: causal attention within each sequence of a row.

    The backward pass recomputes the scores, which is cheaper than storing them. It
    is written out: the derivative of a `switch` stores for every branch what only
    the one that is taken needs, and with the logarithm of its sum a row of weights
    comes back in one step.

    Args:
      q_RGTH: rotated queries; `num_blocks(T)` divides T.
      k_RTH: rotated keys.
      v_RTH: values.
      segment_ids_RT: sequences follow each other and have different ids.
    """
    return _attend_rows(q_RGTH, k_RTH, v_RTH, segment_ids_RT)[0]


def _attend_rows(
    q_RGTH: jax.Array, k_RTH: jax.Array, v_RTH: jax.Array, segment_ids_RT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns (out_RGTH, log_sum_RGT)."""
    num, size = _blocks_of(q_RGTH)
    k_RHT = k_RTH.swapaxes(1, 2)

    def attend(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        def attend_width(width: int) -> tuple[jax.Array, jax.Array]:
            first = _first_key(start, size, width)
            return _attend_block(
                _cut(q_RGTH, start, size, axis=2),
                _cut(k_RHT, first, width, axis=2),
                _cut(v_RTH, first, width, axis=1),
                _mask(segment_ids_RT, start, size, width),
            )

        return _switch_width(attend_width, segment_ids_RT, start, size)

    out_CRGQH, log_sum_CRGQ = jax.lax.map(attend, jnp.arange(num) * size)
    return _join(out_CRGQH), _join(log_sum_CRGQ)


def _attend_block(
    q_RGQH: jax.Array, k_RHS: jax.Array, v_RSH: jax.Array, mask_RQS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns (out_RGQH, log_sum_RGQ) of some queries and the keys of a window."""
    scores_RGQS = _scores(q_RGQH, k_RHS, mask_RQS)
    max_RGQ1 = jnp.max(scores_RGQS, axis=-1, keepdims=True)
    weights_RGQS = jnp.exp(scores_RGQS - max_RGQ1)
    sum_RGQ1 = jnp.sum(weights_RGQS, axis=-1, keepdims=True)
    # Divided after the product: H numbers a query instead of S.
    sums_RGQH = _product(weights_RGQS.astype(v_RSH.dtype), v_RSH)
    out_RGQH = (sums_RGQH / sum_RGQ1).astype(v_RSH.dtype)
    return out_RGQH, (max_RGQ1 + jnp.log(sum_RGQ1))[..., 0]


def _forward(
    q_RGTH: jax.Array, k_RTH: jax.Array, v_RTH: jax.Array, segment_ids_RT: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    inputs = q_RGTH, k_RTH, v_RTH, segment_ids_RT
    out_RGTH, log_sum_RGT = _attend_rows(*inputs)
    return out_RGTH, (*inputs, out_RGTH, log_sum_RGT)


def _backward(
    residuals: tuple[jax.Array, ...], out_grad_RGTH: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_RGTH, k_RTH, v_RTH, segment_ids_RT, out_RGTH, log_sum_RGT = residuals
    num, size = _blocks_of(q_RGTH)
    k_RHT, v_RHT = k_RTH.swapaxes(1, 2), v_RTH.swapaxes(1, 2)
    # What all weights of a query have in common in the gradient of a softmax.
    shared_RGT = jnp.sum(
        out_grad_RGTH.astype(jnp.float32) * out_RGTH.astype(jnp.float32), axis=-1
    )

    zeros_RHT = jnp.zeros_like(k_RHT)

    def pull_back(totals: _Totals, start: jax.Array) -> tuple[_Totals, jax.Array]:
        def pull_back_width(width: int) -> tuple[_Totals, jax.Array]:
            first = _first_key(start, size, width)
            q_grad_RGQH, *parts = _pull_back_block(
                _cut(q_RGTH, start, size, axis=2),
                _cut(k_RHT, first, width, axis=2),
                _cut(v_RHT, first, width, axis=2),
                _cut(k_RTH, first, width, axis=1),
                _mask(segment_ids_RT, start, size, width),
                _cut(log_sum_RGT, start, size, axis=2),
                _cut(out_grad_RGTH, start, size, axis=2),
                _cut(shared_RGT, start, size, axis=2),
            )
            k_part_RHT, v_part_RHT = (
                jax.lax.dynamic_update_slice_in_dim(zeros_RHT, part_RHS, first, axis=2)
                for part_RHS in parts
            )
            return (k_part_RHT, v_part_RHT), q_grad_RGQH

        parts, q_grad_RGQH = _switch_width(pull_back_width, segment_ids_RT, start, size)
        return jax.tree.map(jnp.add, totals, parts), q_grad_RGQH

    (k_grad_RHT, v_grad_RHT), q_grad_CRGQH = jax.lax.scan(
        pull_back,
        (zeros_RHT, zeros_RHT),
        jnp.arange(num) * size,
    )
    k_grad_RTH, v_grad_RTH = k_grad_RHT.swapaxes(1, 2), v_grad_RHT.swapaxes(1, 2)
    return _join(q_grad_CRGQH), k_grad_RTH, v_grad_RTH, None


attend_rows.defvjp(_forward, _backward)


def _pull_back_block(
    q_RGQH: jax.Array,
    k_RHS: jax.Array,
    v_RHS: jax.Array,
    k_RSH: jax.Array,
    mask_RQS: jax.Array,
    log_sum_RGQ: jax.Array,
    out_grad_RGQH: jax.Array,
    shared_RGQ: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients (q_RGQH, k_RHS, v_RHS) of `_attend_block`'s output.

    With weights P = exp(scores - log_sum) and D = out_grad: v' = P^T D,
    scores' = P * (D v^T - shared), q' = scores' k, k' = scores'^T q, the last two
    scaled as the scores are. Keys and values come out transposed, so that the large
    factor of a product is not turned.
    """
    H = q_RGQH.shape[-1]
    weights_RGQS = jnp.exp(_scores(q_RGQH, k_RHS, mask_RQS) - log_sum_RGQ[..., None])
    pull_RGQS = _product(out_grad_RGQH, v_RHS) - shared_RGQ[..., None]
    scores_grad_RGQS = (weights_RGQS * pull_RGQS * H**-0.5).astype(q_RGQH.dtype)
    return (
        _product(scores_grad_RGQS, k_RSH).astype(q_RGQH.dtype),
        _product_over_queries(q_RGQH, scores_grad_RGQS),
        _product_over_queries(out_grad_RGQH, weights_RGQS.astype(v_RHS.dtype)),
    )


def _scores(q_RGQH: jax.Array, k_RHS: jax.Array, mask_RQS: jax.Array) -> jax.Array:
    scores_RGQS = _product(q_RGQH, k_RHS) * q_RGQH.shape[-1] ** -0.5
    return jnp.where(mask_RQS[:, None], scores_RGQS, _MASKED)


def _product(a_RGQX: jax.Array, b_RXY: jax.Array) -> jax.Array:
    """Returns float32 product_RGQY; the group of queries is folded into rows."""
    R, G, Q, X = a_RGQX.shape
    product_RMY = jnp.einsum(
        "RMX,RXY->RMY",
        a_RGQX.reshape(R, G * Q, X),
        b_RXY,
        preferred_element_type=jnp.float32,
    )
    return product_RMY.reshape(R, G, Q, -1)


def _product_over_queries(a_RGQH: jax.Array, b_RGQS: jax.Array) -> jax.Array:
    """Returns product_RHS in the factors' dtype."""
    R, G, Q, H = a_RGQH.shape
    # Turned here: H is small. As a product of its own XLA would turn `b`.
    a_RHM = a_RGQH.reshape(R, G * Q, H).swapaxes(1, 2)
    return jnp.einsum("RHM,RMS->RHS", a_RHM, b_RGQS.reshape(R, G * Q, -1))


def _blocks_of(q_RGTH: jax.Array) -> tuple[int, int]:
    """Returns (how many blocks, queries of each)."""
    num_tokens = q_RGTH.shape[2]
    num = num_blocks(num_tokens)
    return num, num_tokens // num


def _join(x_CRGQ: jax.Array) -> jax.Array:
    """Returns x_RGT...: the blocks of queries one after the other."""
    x_RGCQ = jnp.moveaxis(x_CRGQ, 0, 2)
    R, G = x_RGCQ.shape[:2]
    return x_RGCQ.reshape(R, G, -1, *x_RGCQ.shape[4:])


def _switch_width(
    run: Callable[[int], _Result],
    segment_ids_RT: jax.Array,
    start: jax.Array,
    size: int,
) -> _Result:
    """Returns `run(width)` of the smallest width that reaches all keys of a block."""
    num = segment_ids_RT.shape[1] // size
    widths = [width for width in _WIDTHS if width < num] + [num]
    ids_R1 = _cut(segment_ids_RT, start, 1, axis=1)
    first_key = jnp.min(jnp.argmax(segment_ids_RT == ids_R1, axis=1))
    num_keys = start + size - first_key
    choice = jnp.sum(num_keys > size * jnp.array(widths))
    return jax.lax.switch(choice, [partial(run, width * size) for width in widths])


def _first_key(start: jax.Array, size: int, width: int) -> jax.Array:
    """Returns where a window that ends with a block begins, at least 0."""
    return jnp.maximum(start + size - width, 0)


def _cut(x: jax.Array, start: jax.Array, size: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def _mask(
    segment_ids_RT: jax.Array, start: jax.Array, size: int, width: int
) -> jax.Array:
    """Returns mask_RQS: the own segment, up to the query itself."""
    first = _first_key(start, size, width)
    places_Q, places_S = start + jnp.arange(size), first + jnp.arange(width)
    ids_RQ = _cut(segment_ids_RT, start, size, axis=1)
    ids_RS = _cut(segment_ids_RT, first, width, axis=1)
    is_before_QS = places_Q[:, None] >= places_S
    return is_before_QS & (ids_RQ[:, :, None] == ids_RS[:, None, :])
