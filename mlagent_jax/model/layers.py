"""Building blocks of a Qwen-2.5 decoder layer as flax.nnx modules.

Parameter names follow Hugging Face's, with `kernel` for transposed `weight`;
projections to and from heads keep the head axis apart, so that a mesh never cuts
through a head. Attention itself lives in `attention.py`; the sampler has a form of
its own, `decoder.py`.

Axes: B batch rows, T token positions, D model width, F MLP width, N query heads,
K key/value heads, H head width.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlagent_jax.config import ModelConfig
from mlagent_jax.model import attention, tensor_parallel
from mlagent_jax.parallel.sharding import constrain_tokens

_LOOK_BACK_LOGIT = 16.0  # score of the token that a looking-back head favours


class RMSNorm(nnx.Module):
    """Divides by the root mean square (in float32) and scales."""

    def __init__(self, width: int, eps: float) -> None:
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width, jnp.float32))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Returns the normalised activations in the dtype of `x_BTD`."""
        x32_BTD = x_BTD.astype(jnp.float32)
        mean_square_BT1 = jnp.mean(x32_BTD * x32_BTD, axis=-1, keepdims=True)
        normed_BTD = x32_BTD * jax.lax.rsqrt(mean_square_BT1 + self.eps)
        return normed_BTD.astype(x_BTD.dtype) * self.scale[...]


class Projection(nnx.Module):
    """A linear map of the trailing `inputs` axes to the trailing `outputs` axes.

    Kernels start normal with standard deviation `scale`/sqrt(fan_in), biases at
    zero. Those that write into the residual stream take scale = 1/sqrt(D), the size
    of an embedding: larger ones drown the token that later layers must find.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        *,
        has_bias: bool = False,
        scale: float = 1.0,
        rngs: nnx.Rngs,
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        init = nnx.initializers.normal(scale * math.prod(inputs) ** -0.5)
        shape = (*inputs, *outputs)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        if has_bias:
            self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32))
        else:
            self.bias = None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the projected activations, leading axes unchanged."""
        # One product of two matrices: XLA's CPU backend takes twice as long for
        # the gradient of a product that contracts or keeps several axes.
        leading = x.shape[: x.ndim - len(self.inputs)]
        rows = x.reshape(-1, math.prod(self.inputs))
        y = rows @ self.kernel[...].reshape(rows.shape[1], -1)
        y = y.reshape(*leading, *self.outputs)
        return y if self.bias is None else y + self.bias[...]


class SelfAttention(nnx.Module):
    """Grouped-query attention with rotary positions and QKV bias."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs) -> None:
        D, N, K, H = cfg.hidden_size, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        self.implementation: attention.Implementation = cfg.attention

        self.q_proj = Projection((D,), (N, H), has_bias=True, rngs=rngs)
        self.k_proj = Projection((D,), (K, H), has_bias=True, rngs=rngs)
        self.v_proj = Projection((D,), (K, H), has_bias=True, rngs=rngs)
        self.o_proj = Projection((N, H), (D,), scale=D**-0.5, rngs=rngs)
        q_bias_NH, k_bias_KH = look_back_biases(N, K, H, cfg.rope_theta)
        self.q_proj.bias = nnx.Param(q_bias_NH)
        self.k_proj.bias = nnx.Param(k_bias_KH)

    def __call__(
        self,
        x_BTD: jax.Array,
        rope_BTH: tuple[jax.Array, jax.Array],
        segment_ids_BT: jax.Array,
    ) -> jax.Array:
        """Returns the attention output."""
        q_BTNH, k_BTKH, v_BTKH = _fan_out(x_BTD, self.q_proj, self.k_proj, self.v_proj)
        out_BTNH = attention.attend_within(
            apply_rope(q_BTNH, rope_BTH),
            apply_rope(k_BTKH, rope_BTH),
            v_BTKH,
            segment_ids_BT,
            implementation=self.implementation,
        )
        return _fan_in(out_BTNH, self.o_proj)


class Mlp(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs) -> None:
        D, F = cfg.hidden_size, cfg.intermediate_size
        self.gate_proj = Projection((D,), (F,), rngs=rngs)
        self.up_proj = Projection((D,), (F,), rngs=rngs)
        self.down_proj = Projection((F,), (D,), scale=D**-0.5, rngs=rngs)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Returns the block's output, before the residual is added."""
        gate_BTF, up_BTF = _fan_out(x_BTD, self.gate_proj, self.up_proj)
        return _fan_in(jax.nn.silu(gate_BTF) * up_BTF, self.down_proj)


class DecoderLayer(nnx.Module):
    """Pre-norm attention and MLP, each with a residual connection."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs) -> None:
        self.input_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.self_attn = SelfAttention(cfg, rngs)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.mlp = Mlp(cfg, rngs)

    def __call__(
        self,
        x_BTD: jax.Array,
        rope_BTH: tuple[jax.Array, jax.Array],
        segment_ids_BT: jax.Array,
    ) -> jax.Array:
        """Returns the residual stream after this layer."""
        # On a mesh, tensor-parallel blocks take and give tokens that are split.
        in_BTD = constrain_tokens(self.input_layernorm(x_BTD))
        out_BTD = self.self_attn(in_BTD, rope_BTH, segment_ids_BT)
        x_BTD = x_BTD + constrain_tokens(out_BTD)
        in_BTD = constrain_tokens(self.post_attention_layernorm(x_BTD))
        return x_BTD + constrain_tokens(self.mlp(in_BTD))


def _fan_out(x_BTD: jax.Array, *projections: Projection) -> list[jax.Array]:
    """Returns `x_BTD` through each projection, the way into a block."""
    if not tensor_parallel.is_split(x_BTD):
        return [projection(x_BTD) for projection in projections]
    outputs = tensor_parallel.fan_out(
        x_BTD,
        [tensor_parallel.share_columns(p.kernel[...], 1) for p in projections],
    )
    return [
        y if p.bias is None else y + tensor_parallel.share_columns(p.bias[...], 0)
        for y, p in zip(outputs, projections, strict=True)
    ]


def _fan_in(x: jax.Array, projection: Projection) -> jax.Array:
    """Returns `x` through a projection without bias, the way out of a block."""
    if not tensor_parallel.is_split(x):
        return projection(x)
    return tensor_parallel.fan_in(x, projection.kernel[...])


def look_back_biases(
    num_heads: int, num_kv_heads: int, head_dim: int, theta: float
) -> tuple[jax.Array, jax.Array]:
    """Returns (q_bias_NH, k_bias_KH) to start from: half the heads look back.

    A copying (induction) head is a pair: a head that looks at the previous token,
    and one in a later layer that matches what the first wrote. Random weights find
    the pair late, because neither half pays without the other. Here the first half
    of the query heads start with attention that peaks 1, 2, ... tokens back, which
    rotary positions allow without any content: with q = R(-offset) k the score
    between positions t and s is k^T R(s - t + offset) k. The rest is learnt.
    Measured in BUILD_NOTES.md, "Copying practice"; loaded weights replace it.
    """
    groups = num_heads // num_kv_heads
    frequencies = theta ** (-np.arange(head_dim // 2) / (head_dim // 2))
    # High frequencies tell neighbours apart, so they carry the most.
    weights = frequencies / frequencies.sum()
    amplitudes = np.sqrt(_LOOK_BACK_LOGIT * math.sqrt(head_dim) * weights)
    q_bias_NH = np.zeros((num_heads, head_dim), np.float32)
    k_bias_KH = np.zeros((num_kv_heads, head_dim), np.float32)
    for head in range(num_heads // 2):
        angles = -(head % groups + 1) * frequencies
        cos, sin = amplitudes * np.cos(angles), amplitudes * np.sin(angles)
        q_bias_NH[head] = np.concatenate([cos, sin])
        k_bias_KH[head // groups, : head_dim // 2] = amplitudes
    return jnp.asarray(q_bias_NH), jnp.asarray(k_bias_KH)


def rope_tables(
    positions_BT: jax.Array, head_dim: int, theta: float
) -> tuple[jax.Array, jax.Array]:
    """Returns (cos_BTH, sin_BTH) in float32 for Qwen's rotate-half convention."""

    def tables(positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
        angles = positions[..., None].astype(jnp.float32) / theta**exponents
        angles = jnp.concatenate([angles, angles], axis=-1)
        return jnp.cos(angles), jnp.sin(angles)

    def row_by_row(positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        B, T = positions_BT.shape
        parts = 2 if B == 1 and T % 2 == 0 else 1  # A loop of one turn is no loop.
        cos, sin = jax.lax.map(tables, positions_BT.reshape(B * parts, T // parts))
        return cos.reshape(B, T, head_dim), sin.reshape(B, T, head_dim)

    # In a loop on CPU: what XLA can fuse there with the rotation of a head, it
    # computes for each head and layer anew, and a barrier does not keep it apart.
    tables_BTH: tuple[jax.Array, jax.Array] = jax.lax.platform_dependent(
        positions_BT, cpu=row_by_row, default=tables
    )
    return tables_BTH


def apply_rope(x_BTNH: jax.Array, rope_BTH: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns `x_BTNH` rotated by its positions; computed in float32."""
    cos_BTH, sin_BTH = rope_BTH
    x32_BTNH = x_BTNH.astype(jnp.float32)
    first, second = jnp.split(x32_BTNH, 2, axis=-1)
    rotated_BTNH = jnp.concatenate([-second, first], axis=-1)
    out_BTNH = x32_BTNH * cos_BTH[:, :, None] + rotated_BTNH * sin_BTH[:, :, None]
    return out_BTNH.astype(x_BTNH.dtype)
