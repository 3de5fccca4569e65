"""Attention within whole sequences on TPU: JAX's Splash kernel, one call a shard.

Splash is FlashAttention with block-sparse masks: no (B, N, T, S) array exists, key
blocks above the causal diagonal are skipped, and segment ids mask the rest.

Axes: B rows, T tokens, N query heads, K key/value heads, H head width.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernel_lib,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as mask_lib,
)

from mlagent_jax.model.attention_shards import attend_shards
from mlagent_jax.parallel.hlo import ArrayShape
from mlagent_jax.parallel.hlo_counts import KernelCost

SAVED_NAME = "attention_out"  # what remat = "attention" keeps
LANES = 128  # blocks are multiples of it
_BLOCK = 512  # tokens of a block


def padded_length(num_tokens: int) -> int:
    """Returns the tokens that the kernel runs over: whole blocks of them."""
    block = _block_size(num_tokens)
    return -(-num_tokens // block) * block


def attend_splash(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Returns out_BTNH, as `attention.attend_within`.

    Args:
      q_BTNH: rotated queries.
      k_BTKH: rotated keys.
      v_BTKH: values.
      segment_ids_BT: 0 marks padding.
      interpret: runs the kernel's program in plain JAX, for tests on CPU.
    """
    attend = partial(_attend_shard, interpret=interpret)
    return attend_shards(attend, q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)


def _attend_shard(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array,
    *,
    interpret: bool,
) -> jax.Array:
    T, N, H = q_BTNH.shape[1:]
    block = _block_size(T)
    pad = ((0, 0), (0, padded_length(T) - T))
    segment_ids_BT = jnp.pad(segment_ids_BT, pad)

    def heads_first(x_BTNH: jax.Array) -> jax.Array:
        return jnp.pad(x_BTNH, (*pad, (0, 0), (0, 0))).swapaxes(1, 2)

    mask = mask_lib.CausalMask((padded_length(T), padded_length(T)))
    kernel = kernel_lib.make_splash_mha(
        mask_lib.MultiHeadMask([mask] * N),
        block_sizes=kernel_lib.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=SAVED_NAME,
        interpret=interpret,
    )

    def attend(
        q_NTH: jax.Array, k_KTH: jax.Array, v_KTH: jax.Array, segments_T: jax.Array
    ) -> jax.Array:
        ids = kernel_lib.SegmentIds(q=segments_T, kv=segments_T)
        out_NTH = kernel(q_NTH, k_KTH, v_KTH, ids)
        assert isinstance(out_NTH, jax.Array)  # a tuple only with save_residuals
        return out_NTH

    out_BNTH = jax.vmap(attend)(
        heads_first((q_BTNH * H**-0.5).astype(q_BTNH.dtype)),
        heads_first(k_BTKH),
        heads_first(v_BTKH),
        segment_ids_BT,
    )
    return out_BNTH.swapaxes(1, 2)[:, :T]


def _block_size(num_tokens: int) -> int:
    return min(_BLOCK, -(-num_tokens // LANES) * LANES)


def kernel_cost(name: str, operands: list[ArrayShape]) -> KernelCost | None:
    """Returns the cost of a call of one of the kernels; None for other kernels.

    Blocks above the diagonal are skipped, those on it are computed whole. Memory
    traffic is left to the arguments: each read once, a lower bound.

    Args:
      name: of the kernel, such as "splash_mha_fwd_segmented".
      operands: its arguments.
    """
    products = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
    found = [num for prefix, num in products.items() if prefix in name]
    if not found:
        return None
    # Queries are the largest argument with heads; the residuals of the forward pass
    # come with one number a row.
    query = max((o for o in operands if len(o.dims) >= 3), key=lambda o: o.num_elements)
    T = query.dims[-2]
    num_blocks = T // _block_size(T)
    frac = (num_blocks + 1) / (2 * num_blocks)
    return KernelCost(flops=found[0] * 2.0 * query.num_elements * T * frac)
