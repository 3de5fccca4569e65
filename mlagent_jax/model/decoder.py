"""Qwen-2.5 over a key/value cache: the sampler's half of the model.

The same network as `qwen2`, laid out for few tokens a step, where reading weights
and starting operations cost more than multiplying. `fuse_weights` makes the
sampler's copy: one product for queries, keys and values, and every layer's weights
apart from the others', since cutting them out of a stack would copy them at each
step. For the same reason the layers are unrolled, and gate and up are two arrays: a
TPU copies them into another layout at each step where they are stacked. Matrices may
be turned: a CPU reads large ones faster along the axis that a product sums over.

Axes: L layers, B rows, T tokens of a chunk, S cache positions, D model width, F MLP
width, N query heads, K key/value heads, G = N/K, E = G + 2 (a group's queries, its
key, its value), M = G*T, H head width, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mlagent_jax.config import ModelConfig
from mlagent_jax.model.cache import (
    VALUE_AXIS,
    KVCache,
    Pieces,
    Prefix,
    RecentTokens,
    SharedPrefixes,
)
from mlagent_jax.model.cache_writes import put_chunk, put_newest
from mlagent_jax.model.cached_attention import (
    attend_chunk,
    attend_prefixes,
    attend_tokens,
)
from mlagent_jax.model.layers import rope_tables
from mlagent_jax.model.qwen2 import Params

# (layer, queries, keys, values) -> attention output, all (B, T, K, ., H)
_Attend = Callable[[int, jax.Array, jax.Array, jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """One decoder layer; heads stay an axis, so that a mesh never cuts one."""

    attention_norm_D: jax.Array
    qkv_DKEH: jax.Array
    qkv_bias_KEH: jax.Array
    out_KGHD: jax.Array
    mlp_norm_D: jax.Array
    gate_DF: jax.Array
    up_DF: jax.Array
    down_FD: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderWeights:
    """The whole model in the compute dtype.

    Attributes:
      embedding_VD: of tokens.
      layers: in order.
      norm_D: of the last norm.
      head_DV: the output layer, also of a model that ties it to the embedding.
      is_turned: whether every matrix has two axes, of which the one that products sum
        over comes last, not first as in its name: (KEH, D), (D, KGH), FD, DF, VD.
    """

    embedding_VD: jax.Array
    layers: tuple[LayerWeights, ...]
    norm_D: jax.Array
    head_DV: jax.Array
    is_turned: bool = dataclasses.field(metadata={"static": True})


def fuse_weights(
    cfg: ModelConfig, params: Params, *, is_turned: bool = False
) -> DecoderWeights:
    """Returns the sampler's copy of a parameter tree of `qwen2`.

    Args:
      cfg: the model. Its key/value heads may be a multiple of those in `params`: each
        is then there as often, with its share of the query heads.
      params: the parameters.
      is_turned: how matrices are laid out, see `DecoderWeights`.
    """
    K, H = cfg.num_kv_heads, cfg.head_dim
    G, D = cfg.num_heads // K, cfg.hidden_size
    params = jax.tree.map(lambda p: p.astype(cfg.compute_dtype), params)
    embedding_VD = params["embed_tokens"]["embedding"]
    is_tied = cfg.tie_word_embeddings

    def fuse_layer(layer: Params) -> LayerWeights:
        attention, mlp = layer["self_attn"], layer["mlp"]
        q, k, v = (attention[f"{name}_proj"] for name in "qkv")
        copies = K // k["bias"].shape[0]
        qkv_DKEH = [
            q["kernel"].reshape(D, K, G, H),
            jnp.repeat(k["kernel"], copies, axis=1)[:, :, None],
            jnp.repeat(v["kernel"], copies, axis=1)[:, :, None],
        ]
        qkv_bias_KEH = [
            q["bias"].reshape(K, G, H),
            jnp.repeat(k["bias"], copies, axis=0)[:, None],
            jnp.repeat(v["bias"], copies, axis=0)[:, None],
        ]
        return LayerWeights(
            attention_norm_D=layer["input_layernorm"]["scale"],
            qkv_DKEH=jnp.concatenate(qkv_DKEH, axis=2),
            qkv_bias_KEH=jnp.concatenate(qkv_bias_KEH, axis=1),
            out_KGHD=attention["o_proj"]["kernel"].reshape(K, G, H, D),
            mlp_norm_D=layer["post_attention_layernorm"]["scale"],
            gate_DF=mlp["gate_proj"]["kernel"],
            up_DF=mlp["up_proj"]["kernel"],
            down_FD=mlp["down_proj"]["kernel"],
        )

    weights = DecoderWeights(
        embedding_VD=embedding_VD,
        layers=tuple(
            fuse_layer(jax.tree.map(lambda p, i=index: p[i], params["layers"]))
            for index in range(cfg.num_layers)
        ),
        norm_D=params["norm"]["scale"],
        head_DV=embedding_VD.T if is_tied else params["lm_head"]["kernel"],
        is_turned=False,
    )
    return _turn(weights) if is_turned else weights


def _turn(weights: DecoderWeights) -> DecoderWeights:
    def turn(layer: LayerWeights) -> LayerWeights:
        return dataclasses.replace(
            layer,
            qkv_DKEH=layer.qkv_DKEH.reshape(len(layer.qkv_DKEH), -1).T,
            out_KGHD=layer.out_KGHD.reshape(-1, layer.out_KGHD.shape[-1]).T,
            gate_DF=layer.gate_DF.T,
            up_DF=layer.up_DF.T,
            down_FD=layer.down_FD.T,
        )

    return dataclasses.replace(
        weights,
        layers=tuple(map(turn, weights.layers)),
        head_DV=weights.head_DV.T,
        is_turned=True,
    )


def decode_tokens(
    cfg: ModelConfig,
    weights: DecoderWeights,
    cache: KVCache,
    recent: RecentTokens,
    tokens_B: jax.Array,
    is_live_B: jax.Array,
    *,
    shared: SharedPrefixes | None = None,
) -> tuple[jax.Array, RecentTokens]:
    """Returns (final-norm hidden_BD, recent tokens) after one more token in every row.

    Rows that are not live give garbage.

    Args:
      cfg: the model.
      weights: from `fuse_weights`.
      cache: what came before the recent tokens, behind the shared prefix if any.
      recent: has room for the token.
      tokens_B: token ids.
      is_live_B: bool.
      shared: prefixes that rows share; None for none.
    """

    def longest_live(lengths_B: jax.Array) -> jax.Array:
        return jnp.max(jnp.where(is_live_B, lengths_B, 0))

    end = longest_live(cache.lengths_B)
    shared_end = jnp.int32(0)
    if shared is not None:
        shared_end = longest_live(shared.row_lengths())
    keys, values = list(recent.keys), list(recent.values)

    def attend(
        layer: int, q_B1KGH: jax.Array, k_B1KH: jax.Array, v_B1KH: jax.Array
    ) -> jax.Array:
        k_BKH, v_BKH = k_B1KH[:, 0], v_B1KH[:, 0]
        keys[layer] = put_newest(keys[layer], k_BKH, recent.count, cache.key_axis)
        values[layer] = put_newest(values[layer], v_BKH, recent.count, VALUE_AXIS)
        sums = None
        if shared is not None:
            sums = attend_prefixes(
                q_B1KGH[:, 0],
                shared.cache.keys[layer],
                shared.cache.values[layer],
                shared.cache.lengths_B,
                shared.readers,
                end=shared_end,
                key_axis=cache.key_axis,
            )
        out_BKGH = attend_tokens(
            q_B1KGH[:, 0],
            cache.keys[layer],
            cache.values[layer],
            cache.lengths_B,
            keys[layer],
            values[layer],
            recent.count,
            end=end,
            key_axis=cache.key_axis,
            sums=sums,
        )
        return out_BKGH[:, None]

    rope_B1H = jax.tree.map(
        lambda table: jax.lax.dynamic_slice_in_dim(table, recent.count, 1, axis=1),
        recent.rope_BRH,
    )
    hidden_B1D = _run(cfg, weights, tokens_B[:, None], rope_B1H, attend)
    recent = dataclasses.replace(
        recent, keys=tuple(keys), values=tuple(values), count=recent.count + 1
    )
    return hidden_B1D[:, 0], recent


def prefill_chunk(
    cfg: ModelConfig,
    weights: DecoderWeights,
    cache: KVCache,
    tokens_T: jax.Array,
    *,
    row: jax.Array,
    start: jax.Array,
    prefix: Prefix | None = None,
) -> KVCache:
    """Returns `cache` with a chunk of one row's prompt behind its first `start` tokens.

    Padding may follow the prompt in the chunk: it becomes garbage behind the live
    positions. `lengths_B` stays as it is.

    Args:
      cfg: the model.
      weights: from `fuse_weights`.
      cache: holds the first `start` tokens of the prompt in `row`.
      tokens_T: the chunk; T is the cache's `chunk_size`.
      row: int32 scalar.
      start: int32 scalar, a multiple of T.
      prefix: what stands before the row's first token; None for nothing.
    """
    T = len(tokens_T)
    K, H = cfg.num_kv_heads, cfg.head_dim
    G = cfg.num_heads // K
    positions_T = start + jnp.arange(T)
    keys, values = list(cache.keys), list(cache.values)

    def attend(
        layer: int, q_1TKGH: jax.Array, k_1TKH: jax.Array, v_1TKH: jax.Array
    ) -> jax.Array:
        k_1KTH, v_1KTH = k_1TKH.swapaxes(1, 2), v_1TKH.swapaxes(1, 2)
        k = jnp.moveaxis(k_1KTH, 2, cache.key_axis)
        keys[layer] = put_chunk(keys[layer], k, row, start, cache.key_axis)
        values[layer] = put_chunk(values[layer], v_1KTH, row, start, VALUE_AXIS)
        q_1KMH = q_1TKGH.transpose(0, 2, 3, 1, 4).reshape(1, K, G * T, H)
        out_1KMH = attend_chunk(
            q_1KMH,
            keys[layer],
            values[layer],
            jnp.tile(positions_T, G),
            end=start + T,
            row=row,
            key_axis=cache.key_axis,
            prefix=prefix and _layer_of(prefix, layer),
        )
        return out_1KMH.reshape(1, K, G, T, H).transpose(0, 3, 1, 2, 4)

    # The hidden states are not used: XLA drops the last MLP, and no logits exist.
    first = 0 if prefix is None else prefix.length
    positions_1T = (first + positions_T)[None]
    rope_1TH = rope_tables(positions_1T, cfg.head_dim, cfg.rope_theta)
    _run(cfg, weights, tokens_T[None], rope_1TH, attend)
    return dataclasses.replace(cache, keys=tuple(keys), values=tuple(values))


def _layer_of(
    prefix: Prefix, layer: int
) -> tuple[Pieces, Pieces, jax.Array, jax.Array]:
    cache = prefix.cache
    return cache.keys[layer], cache.values[layer], prefix.row, prefix.length


def unembed(weights: DecoderWeights, hidden_BD: jax.Array) -> jax.Array:
    """Returns float32 logits_BV of final-norm hidden states."""
    head_DV = weights.head_DV.T if weights.is_turned else weights.head_DV
    return jnp.dot(hidden_BD, head_DV, preferred_element_type=jnp.float32)


def _run(
    cfg: ModelConfig,
    weights: DecoderWeights,
    tokens_BT: jax.Array,
    rope_BTH: tuple[jax.Array, jax.Array],
    attend: _Attend,
) -> jax.Array:
    """Returns the final-norm hidden states; `attend` keeps the cache."""
    (B, T), K, H = tokens_BT.shape, cfg.num_kv_heads, cfg.head_dim
    G = cfg.num_heads // K
    rope_BT11H = tuple(table_BTH[:, :, None, None] for table_BTH in rope_BTH)
    x_BTD = jnp.take(weights.embedding_VD, tokens_BT, axis=0)
    multiply = functools.partial(_multiply, is_turned=weights.is_turned)
    for index, layer in enumerate(weights.layers):
        normed_BTD = _norm(x_BTD, layer.attention_norm_D, cfg.rms_norm_eps)
        qkv_BTKEH = multiply("BTD,DKEH->BTKEH", normed_BTD, layer.qkv_DKEH)
        qkv_BTKEH = qkv_BTKEH.reshape(B, T, K, G + 2, H) + layer.qkv_bias_KEH
        rotated_BTKEH = _rotate(qkv_BTKEH[..., : G + 1, :], rope_BT11H)
        out_BTKGH = attend(
            index,
            rotated_BTKEH[..., :G, :],
            rotated_BTKEH[..., G, :],
            qkv_BTKEH[..., G + 1, :],
        ).astype(x_BTD.dtype)
        # As one axis: XLA lays the matrix out anew where it sums over several.
        out_BTM, out_MD = out_BTKGH.reshape(B, T, -1), layer.out_KGHD
        out_MD = out_MD if weights.is_turned else out_MD.reshape(-1, out_MD.shape[-1])
        x_BTD += multiply("BTM,MD->BTD", out_BTM, out_MD)
        normed_BTD = _norm(x_BTD, layer.mlp_norm_D, cfg.rms_norm_eps)
        gate_BTF = jax.nn.silu(multiply("BTD,DF->BTF", normed_BTD, layer.gate_DF))
        up_BTF = multiply("BTD,DF->BTF", normed_BTD, layer.up_DF)
        x_BTD += multiply("BTF,FD->BTD", gate_BTF * up_BTF, layer.down_FD)
    return _norm(x_BTD, weights.norm_D, cfg.rms_norm_eps)


def _multiply(
    equation: str, x: jax.Array, matrix: jax.Array, *, is_turned: bool
) -> jax.Array:
    """Returns the einsum of activations and a matrix; (B, T, .) of a turned one."""
    if not is_turned:
        return jnp.einsum(equation, x, matrix)
    return x.reshape(*x.shape[:2], -1) @ matrix.T


def _norm(x_BTD: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    x32_BTD = x_BTD.astype(jnp.float32)
    mean_square_BT1 = jnp.mean(x32_BTD * x32_BTD, axis=-1, keepdims=True)
    normed_BTD = x32_BTD * jax.lax.rsqrt(mean_square_BT1 + eps)
    return normed_BTD.astype(x_BTD.dtype) * scale_D


def _rotate(x_BTKEH: jax.Array, rope_BT11H: tuple[jax.Array, ...]) -> jax.Array:
    """Returns rotary-embedded heads; computed in float32."""
    cos_BT11H, sin_BT11H = rope_BT11H
    x32_BTKEH = x_BTKEH.astype(jnp.float32)
    first, second = jnp.split(x32_BTKEH, 2, axis=-1)
    turned_BTKEH = jnp.concatenate([-second, first], axis=-1)
    out_BTKEH = x32_BTKEH * cos_BT11H + turned_BTKEH * sin_BT11H
    return out_BTKEH.astype(x_BTKEH.dtype)
