"""The log-likelihood of tokens with its gradient, from one look at their logits.

Where each log-probability counts by a weight that is known beforehand, as in
fine-tuning, the gradient of a chunk's logits is known as soon as they are there. So
they are made once, where `scores.score_hidden`, whose result may go anywhere, makes
them again in the backward pass: one product of four with the output layer less.

Axes: B rows, T tokens, D model width, V vocabulary, C chunks, U tokens a chunk.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mlagent_jax.model.scores import (
    chunk_logits,
    default_chunk_size,
    join_chunks,
    score_logits,
    split_chunks,
    whole_table,
)
from mlagent_jax.parallel.mesh import DATA, FSDP, TENSOR


def weighted_sum(
    hidden_BTD: jax.Array,
    table_DV: jax.Array,
    tokens_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns float32 (sum of weight x log-probability, logprobs_BT).

    Only the sum is differentiable, in hidden states and table. With probabilities p of
    a position its gradient in the logits is weight x (one-hot of the token - p), which
    is rounded to the compute dtype for the products that follow.

    Args:
      hidden_BTD: final hidden states, in the compute dtype.
      table_DV: the output layer, in any dtype; gradients are summed in float32.
      tokens_BT: the token at each position whose log-probability counts.
      weights_BT: float32, by how much.
      chunk_size: see `score_hidden`.
    """

    def sum_rows(
        hidden_BTD: jax.Array,
        table_DV: jax.Array,
        tokens_BT: jax.Array,
        weights_BT: jax.Array,
        axis: str | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        size = default_chunk_size(hidden_BTD) if chunk_size is None else chunk_size
        sums: Any = _weighted_sum(
            hidden_BTD, table_DV, tokens_BT, weights_BT, size, axis
        )
        return sums

    def sum_shard(
        hidden_BTD: jax.Array,
        table_DV: jax.Array,
        tokens_BT: jax.Array,
        weights_BT: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        # Its gradient of one part of the vocabulary is summed where this is undone.
        hidden_BTD = jax.lax.pcast(hidden_BTD, TENSOR, to="varying")
        total, logprobs_BT = sum_rows(
            hidden_BTD, whole_table(table_DV), tokens_BT, weights_BT, TENSOR
        )
        return jax.lax.psum(total, (DATA, FSDP)), logprobs_BT

    if jax.sharding.get_abstract_mesh().empty:
        total, logprobs_BT = sum_rows(
            hidden_BTD, table_DV.astype(jnp.float32), tokens_BT, weights_BT
        )
    else:
        rows = PartitionSpec((DATA, FSDP))
        total, logprobs_BT = jax.shard_map(
            sum_shard,
            in_specs=(rows, PartitionSpec(FSDP, TENSOR), rows, rows),
            out_specs=(PartitionSpec(), rows),
        )(hidden_BTD, table_DV, tokens_BT, weights_BT)
    return total, jax.lax.stop_gradient(logprobs_BT)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _weighted_sum(
    hidden_BTD: jax.Array,
    table_DV: jax.Array,
    tokens_BT: jax.Array,
    weights_BT: jax.Array,
    chunk_size: int,
    axis: str | None,
) -> tuple[jax.Array, jax.Array]:
    """Returns (weighted sum, logprobs_BT) of one device's rows; table in float32."""

    def score_chunk(chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden_BUD, tokens_BU = chunk
        logits_BUV = chunk_logits(hidden_BUD, table_DV)
        return score_logits(logits_BUV, tokens_BU, axis)[0]

    chunks = tuple(split_chunks(x, chunk_size) for x in (hidden_BTD, tokens_BT))
    logprobs_CBU = jax.lax.map(score_chunk, chunks)
    logprobs_BT = join_chunks(logprobs_CBU, tokens_BT.shape[1])
    return jnp.sum(weights_BT * logprobs_BT), logprobs_BT


def _weighted_sum_forward(
    hidden_BTD: jax.Array,
    table_DV: jax.Array,
    tokens_BT: jax.Array,
    weights_BT: jax.Array,
    chunk_size: int,
    axis: str | None,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns (results, gradients of the sum in hidden states and table)."""
    dtype, T = hidden_BTD.dtype, tokens_BT.shape[1]

    def run_chunk(
        table_grad_DV: jax.Array, chunk: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        hidden_BUD, tokens_BU, weights_BU = chunk
        logits_BUV = chunk_logits(hidden_BUD, table_DV)
        logprobs_BU, grad_BUV = _logprobs_and_gradient(
            logits_BUV, tokens_BU, weights_BU, axis
        )
        grad = grad_BUV.astype(dtype).reshape(-1, grad_BUV.shape[-1])
        hidden = hidden_BUD.reshape(-1, hidden_BUD.shape[-1])
        hidden_grad = jnp.dot(grad, table_DV.astype(dtype).T)
        table_grad_DV += jnp.dot(hidden.T, grad, preferred_element_type=jnp.float32)
        return table_grad_DV, (logprobs_BU, hidden_grad.reshape(hidden_BUD.shape))

    chunks = tuple(
        split_chunks(x, chunk_size) for x in (hidden_BTD, tokens_BT, weights_BT)
    )
    table_grad_DV, (logprobs_CBU, hidden_grad_CBUD) = jax.lax.scan(
        run_chunk, jnp.zeros_like(table_DV), chunks
    )
    logprobs_BT = join_chunks(logprobs_CBU, T)
    hidden_grad_BTD = join_chunks(hidden_grad_CBUD, T)
    total = jnp.sum(weights_BT * logprobs_BT)
    return (total, logprobs_BT), (hidden_grad_BTD, table_grad_DV)


def _weighted_sum_backward(
    chunk_size: int,
    axis: str | None,
    gradients: tuple[jax.Array, jax.Array],
    out_grads: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, None, None]:
    del chunk_size, axis
    hidden_grad_BTD, table_grad_DV = gradients
    scale = out_grads[0]
    hidden_grad_BTD = (scale * hidden_grad_BTD).astype(hidden_grad_BTD.dtype)
    return hidden_grad_BTD, scale * table_grad_DV, None, None


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward)


def _logprobs_and_gradient(
    logits_BUV: jax.Array, tokens_BU: jax.Array, weights_BU: jax.Array, axis: str | None
) -> tuple[jax.Array, jax.Array]:
    """Returns (logprobs_BU, gradient of their weighted sum in the logits)."""
    logprobs_BU, vjp = jax.vjp(
        lambda logits_BUV: score_logits(logits_BUV, tokens_BU, axis)[0], logits_BUV
    )
    return logprobs_BU, vjp(weights_BU)[0]
