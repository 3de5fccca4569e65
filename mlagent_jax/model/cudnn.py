"""Attention within whole sequences on GPU: cuDNN's fused kernels, one call a shard.

A row that holds one sequence needs its length alone, and the kernels skip what lies
behind it. Only packed rows need a mask, (B, T, T), which costs memory traffic and, in
the backward pass, a gradient that nobody uses. Which of the two a batch is shows when
it runs.

Axes: B rows, T tokens, N query heads, K key/value heads, H head width.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from mlagent_jax.model.attention_shards import attend_shards
from mlagent_jax.parallel.hlo import ArrayShape
from mlagent_jax.parallel.hlo_counts import KernelCost


def attend_cudnn(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Returns out_BTNH, as `attention.attend_within`.

    Args:
      q_BTNH: rotated queries.
      k_BTKH: rotated keys.
      v_BTKH: values.
      segment_ids_BT: 0 marks padding.
      implementation: "xla" runs the same in plain JAX, for tests on CPU.
    """
    attend = partial(_attend_shard, implementation=implementation)
    return attend_shards(attend, q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)


def _attend_shard(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array,
    *,
    implementation: Literal["cudnn", "xla"],
) -> jax.Array:
    attend = partial(
        jax.nn.dot_product_attention, is_causal=True, implementation=implementation
    )

    def by_length(*qkv: jax.Array) -> jax.Array:
        # Of a row of padding one token counts: a softmax over nothing is not a number.
        lengths_B = jnp.maximum(jnp.sum(segment_ids_BT != 0, axis=1), 1)
        return attend(
            *qkv, query_seq_lengths=lengths_B, key_value_seq_lengths=lengths_B
        )

    @jax.checkpoint  # Else the mask is kept for the backward pass, in either case.
    def by_mask(*qkv: jax.Array) -> jax.Array:
        same_BTT = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
        return attend(*qkv, mask=same_BTT[:, None])

    return jax.lax.cond(
        _holds_one_each(segment_ids_BT), by_length, by_mask, q_BTNH, k_BTKH, v_BTKH
    )


def _holds_one_each(segment_ids_BT: jax.Array) -> jax.Array:
    """Returns whether every row is one sequence, then padding."""
    is_padding_BT = segment_ids_BT == 0
    is_first_BT = segment_ids_BT == segment_ids_BT[:, :1]
    is_last_BT = is_padding_BT[:, 1:] | ~is_padding_BT[:, :-1]
    return jnp.all(is_first_BT | is_padding_BT) & jnp.all(is_last_BT)


def kernel_cost(name: str, operands: list[ArrayShape]) -> KernelCost | None:
    """Returns the cost of a call of one of the kernels; None for other kernels.

    Their block size is not known: products are counted below the diagonal.

    Args:
      name: of the kernel with its scopes.
      operands: its arguments.
    """
    products = {"dot_product_attention_fwd": 2, "dot_product_attention_bwd": 5}
    found = [num for part, num in products.items() if part in name]
    if not found:
        return None
    B, T, N, H = operands[0].dims
    return KernelCost(flops=found[0] * 2.0 * B * N * H * T * T / 2)
