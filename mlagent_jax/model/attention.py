"""Attention within whole sequences; the seam between backends.

`attend_within` is what training and scoring use: causal within each segment. The
sampler's attention is in `cached_attention`. The implementation has a name:

- "blocked": plain XLA, queries in blocks that skip the keys after them and those of
  earlier sequences, as many rows at once as their scores stay small, see
  `packed_attention`; no (B, N, T, S) array exists.
- "splash": JAX's Splash kernel for TPU, see `splash`.
- "cudnn": cuDNN's fused kernels, for GPU in a half precision, see `cudnn`.
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

from mlagent_jax.model import cudnn, splash
from mlagent_jax.model.cudnn import attend_cudnn
from mlagent_jax.model.packed_attention import attend_rows, num_blocks
from mlagent_jax.model.splash import attend_splash
from mlagent_jax.parallel.hlo import ArrayShape
from mlagent_jax.parallel.hlo_counts import KernelCost

Implementation = Literal["auto", "blocked", "xla", "splash", "cudnn"]

_MOST_SCORES = 1 << 21  # of a block of queries, all rows that go together


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
    if implementation == "cudnn":
        return attend_cudnn(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)
    T = q_BTNH.shape[1]
    same_BTT = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    mask_BTT = same_BTT & jnp.tril(jnp.ones((T, T), bool))
    return jax.nn.dot_product_attention(
        q_BTNH, k_BTKH, v_BTKH, mask=mask_BTT[:, None], implementation="xla"
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


def kernel_cost(name: str, operands: list[ArrayShape]) -> KernelCost | None:
    """Returns the cost of a call of a kernel of "splash" or "cudnn"; else None.

    Args:
      name: of the kernel with its scopes.
      operands: its arguments.
    """
    return cudnn.kernel_cost(name, operands) or splash.kernel_cost(name, operands)


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
    num = num_blocks(T)
    pad = (0, -T % num)
    padded = T + pad[1]

    def split(x: jax.Array) -> jax.Array:
        """Returns (groups, rows of a group, ..., T padded, H) of (B*K, ..., T, H)."""
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [pad, (0, 0)])
        return x.reshape(-1, num_rows, *x.shape[1:])

    num_rows = _rows_together(B * K, G * (padded // num) * padded)
    q_RGTH = q_BTNH.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4)
    ids_RT1 = jnp.repeat(segment_ids_BT, K, axis=0)[..., None]
    out_CRGTH = jax.lax.map(
        lambda group: attend_rows(*group[:3], group[3][..., 0]),
        (
            split(q_RGTH.reshape(B * K, G, T, H)),
            split(k_BTKH.transpose(0, 2, 1, 3).reshape(B * K, T, H)),
            split(v_BTKH.transpose(0, 2, 1, 3).reshape(B * K, T, H)),
            split(ids_RT1),
        ),
    )
    out_BKGTH = out_CRGTH.reshape(B, K, G, padded, H)[:, :, :, :T]
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _rows_together(num_rows: int, scores_per_row: int) -> int:
    """Returns the most rows, a divisor of `num_rows`, whose scores are few enough."""
    most = max(1, _MOST_SCORES // scores_per_row)
    return max(n for n in range(1, num_rows + 1) if num_rows % n == 0 and n <= most)
