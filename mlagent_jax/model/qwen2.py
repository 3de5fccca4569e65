"""Qwen-2.5 as pure functions over a parameter tree.

    graphdef = make_graphdef(cfg)
    params = init_params(cfg, key)          # or hf.load_folder
    hidden_BTD = forward(graphdef, params, tokens_BT, positions_BT)
    logits_BTV = unembed(graphdef, params, hidden_BTD)

`params` is a nested dict of float32 arrays with Hugging Face's names; the layers
are stacked on a leading axis L and scanned; an untied model has an `lm_head` besides.
This is the only place that merges parameters into a module.

Axes: B rows, T tokens, L layers, D model width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mlagent_jax.config import ModelConfig
from mlagent_jax.model import tensor_parallel
from mlagent_jax.model.layers import DecoderLayer, RMSNorm, rope_tables
from mlagent_jax.model.splash import SAVED_NAME
from mlagent_jax.parallel.sharding import constrain_tokens, gather_params

Params = dict[str, Any]  # nested: name -> Params or array

_LAYER_INPUT = "layer_input"
_MAX_UNROLLED = 4  # layers; a loop copies what each keeps for the backward pass
_Module = TypeVar("_Module", bound=nnx.Module)


class Embedding(nnx.Module):
    """Table of token vectors, normal with standard deviation 1/sqrt(D)."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs) -> None:
        shape = (cfg.vocab_size, cfg.hidden_size)
        init = nnx.initializers.normal(cfg.hidden_size**-0.5)
        self.embedding = nnx.Param(init(rngs.params(), shape, jnp.float32))


class Qwen2(nnx.Module):
    """Everything below the output layer; a critic is this with another head."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs) -> None:
        @nnx.split_rngs(splits=cfg.num_layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make_layers(layer_rngs: nnx.Rngs) -> DecoderLayer:
            return DecoderLayer(cfg, layer_rngs)

        self.cfg = cfg
        self.embed_tokens = Embedding(cfg, rngs)
        self.layers = make_layers(rngs)
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array,
    ) -> jax.Array:
        """Returns the final-norm hidden states."""
        cfg = self.cfg
        rope_BTH = rope_tables(positions_BT, cfg.head_dim, cfg.rope_theta)

        def run_layer(layer: DecoderLayer, x_BTD: jax.Array) -> jax.Array:
            x_BTD = checkpoint_name(x_BTD, _LAYER_INPUT)
            # Tensor-parallel blocks gather their kernels themselves.
            is_whole = not tensor_parallel.is_split(x_BTD)
            layer = _ready_to_use(layer, cfg.compute_dtype, is_whole=is_whole)
            return constrain_tokens(layer(x_BTD, rope_BTH, segment_ids_BT))

        if cfg.remat != "none":
            # The scan already keeps XLA from merging the recomputation away.
            policy = _remat_policy(cfg.remat)
            run_layer = nnx.remat(run_layer, prevent_cse=False, policy=policy)
        scan = nnx.scan(
            run_layer,
            in_axes=(0, nnx.Carry),
            out_axes=nnx.Carry,
            unroll=cfg.num_layers if cfg.num_layers <= _MAX_UNROLLED else 1,
        )
        embed_tokens = _ready_to_use(self.embed_tokens, cfg.compute_dtype)
        x_BTD = jnp.take(embed_tokens.embedding[...], tokens_BT, axis=0)
        x_BTD = constrain_tokens(x_BTD)
        return _ready_to_use(self.norm, cfg.compute_dtype)(scan(self.layers, x_BTD))


def make_graphdef(cfg: ModelConfig) -> nnx.GraphDef[Qwen2]:
    """Returns the static half of the model; hashable, no arrays."""
    return nnx.split(nnx.eval_shape(lambda: Qwen2(cfg, nnx.Rngs(0))))[0]


def init_params(cfg: ModelConfig, key: jax.Array) -> Params:
    """Returns random float32 parameters, determined by `key`."""
    trunk_key, head_key = jax.random.split(key)
    params = nnx.to_pure_dict(nnx.split(Qwen2(cfg, nnx.Rngs(trunk_key)))[1])
    if not cfg.tie_word_embeddings:
        init = nnx.initializers.normal(cfg.hidden_size**-0.5)
        kernel_DV = init(head_key, (cfg.hidden_size, cfg.vocab_size), jnp.float32)
        params["lm_head"] = {"kernel": kernel_DV}
    return params


def abstract_params(cfg: ModelConfig) -> Params:
    """Returns the parameter tree as `jax.ShapeDtypeStruct`s, without memory."""
    return jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))


def config_of(graphdef: nnx.GraphDef[Qwen2], params: Params) -> ModelConfig:
    """Returns the configuration that `graphdef` was made from."""
    return _merge(graphdef, params).cfg


def forward(
    graphdef: nnx.GraphDef[Qwen2],
    params: Params,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    *,
    segment_ids_BT: jax.Array | None = None,
) -> jax.Array:
    """Returns final-norm hidden_BTD in the compute dtype.

    A token attends to tokens of its own segment up to itself. The form with a
    key/value cache is `decoder.decode_tokens`.

    Args:
      graphdef: from `make_graphdef`.
      params: master weights, or a copy in another float dtype.
      tokens_BT: token ids.
      positions_BT: position of each token in its own sequence, for the rotary
        embedding.
      segment_ids_BT: sequences packed into one row have different ids; 0 marks
        padding, which nobody attends to; None means that every token is real and
        a row one sequence.
    """
    if segment_ids_BT is None:
        segment_ids_BT = jnp.ones_like(tokens_BT)
    model = _merge(graphdef, params)
    return model(tokens_BT, positions_BT, segment_ids_BT)


def head_table(graphdef: nnx.GraphDef[Qwen2], params: Params) -> jax.Array:
    """Returns the output layer's table_DV, in the dtype of `params`."""
    if config_of(graphdef, params).tie_word_embeddings:
        return params["embed_tokens"]["embedding"].T
    return params["lm_head"]["kernel"]


def unembed(
    graphdef: nnx.GraphDef[Qwen2], params: Params, hidden: jax.Array
) -> jax.Array:
    """Returns float32 logits[..., V] of final-norm hidden states[..., D]."""
    table_DV = head_table(graphdef, params)
    rows = hidden.reshape(-1, hidden.shape[-1])
    logits = jnp.dot(
        rows, table_DV.astype(hidden.dtype), preferred_element_type=jnp.float32
    )
    return logits.reshape(*hidden.shape[:-1], -1)


def _ready_to_use(module: _Module, dtype: str, *, is_whole: bool = True) -> _Module:
    """Returns a layer, table or norm in the compute dtype, `is_whole` along `fsdp`.

    Cast first: it travels at half the size of float32. Done layer by layer, so that
    neither copy exists for all layers at once.
    """
    names = {Embedding: "embed_tokens", RMSNorm: "norm"}
    name = names.get(type(module), "layers")
    graphdef, state = nnx.split(module)
    params = jax.tree.map(lambda p: p.astype(dtype), nnx.to_pure_dict(state))
    if is_whole:
        params = gather_params({name: params})[name]
    return nnx.merge(graphdef, params)


def _remat_policy(name: str) -> Callable[..., Any]:
    """Returns which values of a layer survive until the backward pass."""
    policies = jax.checkpoint_policies
    if name == "attention":
        return policies.save_only_these_names(_LAYER_INPUT, SAVED_NAME)
    if name == "offload":
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[_LAYER_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        )
    return policies.save_only_these_names(_LAYER_INPUT)


def _merge(graphdef: nnx.GraphDef[Qwen2], params: Params) -> Qwen2:
    trunk = {name: value for name, value in params.items() if name != "lm_head"}
    return nnx.merge(graphdef, trunk)
