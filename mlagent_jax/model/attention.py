"""Attention within whole sequences; the seam between backends.

`attend_within` is what training and scoring use: causal within each segment. The
sampler's attention is in `cached_attention`. The implementation has a name:

- "blocked": plain XLA in a loop over (row, key/value head), queries in blocks that
  skip the keys after them and, in long rows, those of earlier sequences. The query
  group of a head is folded into rows, so every product is one large matrix product,
  which is what XLA's CPU backend does well (3-4 times faster than a batched einsum
  there), and no (B, N, T, S) array exists.
- "splash": JAX's Splash kernel for TPU, see `splash`.
- "cudnn": `jax.nn.dot_product_attention` through cuDNN's fused kernels, for GPU in
  a half precision; stores the mask of each row, (B, T, S), but no scores.
- "xla": `jax.nn.dot_product_attention` in plain XLA, anywhere; stores the scores.
- "auto": "blocked" on CPU, "splash" on TPU, "cudnn" on GPU in bfloat16, else "xla".

Scores and softmax are float32. A query that may attend to nothing (padding) gets
finite garbage, never NaN.

Axes: B rows, T queries, S keys, N query heads, K key/value heads, G = N/K, H head
width, R = B*K.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlagent_jax.model.packed_attention import NUM_BLOCKS, attend_block, attend_row
from mlagent_jax.model.splash import attend_splash

Implementation = Literal["auto", "blocked", "xla", "splash", "cudnn"]

_MIN_BLOCK = 96
_MIN_PACKED = 256  # shorter rows are not worth a choice of keys


def attend_within(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array,
    *,
    implementation: Implementation = "auto",
) -> jax.Array:
    """Returns out_BTNH: every token attends to its own segment up to itself.

    Args:
      q_BTNH: rotated queries.
      k_BTKH: rotated keys.
      v_BTKH: values.
      segment_ids_BT: sequences packed into one row follow each other and have
        different ids; tokens with id 0 are padding.
      implementation: see the module's docstring.
    """
    implementation = resolve(implementation, jax.default_backend(), q_BTNH.dtype)
    if implementation == "blocked":
        return _blocked(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)
    if implementation == "splash":
        return attend_splash(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)
    T = q_BTNH.shape[1]
    same_BTT = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    mask_BTT = same_BTT & jnp.tril(jnp.ones((T, T), bool))
    return jax.nn.dot_product_attention(
        q_BTNH, k_BTKH, v_BTKH, mask=mask_BTT[:, None], implementation=implementation
    )


def resolve(
    implementation: Implementation, platform: str, dtype: DTypeLike
) -> Literal["blocked", "xla", "splash", "cudnn"]:
    """Returns what "auto" means for arrays of `dtype` on "cpu", "tpu" or "gpu"."""
    if implementation != "auto":
        return implementation
    if platform == "cpu":
        return "blocked"
    if platform == "tpu":
        return "splash"
    is_half = jnp.dtype(dtype).itemsize == 2
    return "cudnn" if platform == "gpu" and is_half else "xla"


def _blocked(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array,
) -> jax.Array:
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    G = N // K
    # Ties the mask to the queries. Else the scan over layers finds that the masks
    # of all rows depend on no layer, and stores them: (B, N, T, T) booleans.
    q_BTNH, segment_ids_BT = jax.lax.optimization_barrier((q_BTNH, segment_ids_BT))
    q_BKGTH = q_BTNH.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4)
    k_RTH = k_BTKH.transpose(0, 2, 1, 3).reshape(B * K, T, H)
    v_RTH = v_BTKH.transpose(0, 2, 1, 3).reshape(B * K, T, H)
    segment_ids_RT = jnp.repeat(segment_ids_BT, K, axis=0)
    attend = _attend_packed_row if T >= _MIN_PACKED else _attend_short_row
    out_RGTH = jax.lax.map(
        lambda row: attend(*row),
        (q_BKGTH.reshape(B * K, G, T, H), k_RTH, v_RTH, segment_ids_RT),
    )
    out_BKGTH = out_RGTH.reshape(B, K, G, T, H)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _attend_packed_row(
    q_GTH: jax.Array, k_TH: jax.Array, v_TH: jax.Array, segment_ids_T: jax.Array
) -> jax.Array:
    T = len(k_TH)
    pad = (0, -T % NUM_BLOCKS)
    out_GTH: jax.Array = attend_row(
        jnp.pad(q_GTH, ((0, 0), pad, (0, 0))),
        jnp.pad(k_TH, (pad, (0, 0))),
        jnp.pad(v_TH, (pad, (0, 0))),
        jnp.pad(segment_ids_T, pad),
    )
    return out_GTH[:, :T]


# Recomputing a row in the backward pass is cheaper than storing its scores.
@jax.checkpoint
def _attend_short_row(
    q_GTH: jax.Array, k_TH: jax.Array, v_TH: jax.Array, segment_ids_T: jax.Array
) -> jax.Array:
    T = len(k_TH)
    size = max(_MIN_BLOCK, -(-T // NUM_BLOCKS))
    blocks: list[jax.Array] = []
    for start in range(0, T, size):
        end = min(start + size, T)
        is_causal_TS = jnp.arange(start, end)[:, None] >= jnp.arange(end)
        is_same_TS = segment_ids_T[start:end, None] == segment_ids_T[:end]
        mask_TS = is_causal_TS & is_same_TS
        out_GTH, _ = attend_block(q_GTH[:, start:end], k_TH[:end], v_TH[:end], mask_TS)
        blocks.append(out_GTH)
    return jnp.concatenate(blocks, axis=1)
