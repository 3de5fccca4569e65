"""The jitted functions of the sampler: built by a factory, nothing at import."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlagent_jax.config import ModelConfig, SampleConfig
from mlagent_jax.model import qwen2
from mlagent_jax.parallel.mesh import TENSOR
from mlagent_jax.sample import decode
from mlagent_jax.sample.methods import SamplingMethod


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """The compiled functions of one engine; prefill and decode reuse the state given.

    Attributes:
      init: capacity -> a state without requests.
      grow: (state, capacity) -> the same state with longer rows.
      prefill: (params, state, admission) -> see `decode.prefill`.
      decode: (params, state, keep_B) -> see `decode.decode`.
      cast: weights -> weights in the compute dtype, the same arrays if they have it.
      put: numpy arrays -> device arrays, as an explicit transfer.
    """

    init: Callable[[int], decode.DecodeState]
    grow: Callable[[decode.DecodeState, int], decode.DecodeState]
    prefill: Callable[..., decode.DecodeState]
    decode: Callable[..., decode.DecodeState]
    cast: Callable[[qwen2.Params], qwen2.Params]
    put: Callable[[Any], Any]


def make_programs(
    graphdef: Any,
    model_cfg: ModelConfig,
    cfg: SampleConfig,
    end_ids: tuple[int, ...],
    mesh: Mesh | None,
) -> Programs:
    """Returns jitted functions that keep the state where the mesh puts it.

    Args:
      graphdef: from `qwen2.make_graphdef`.
      model_cfg: what it was made from.
      cfg: decoding.
      end_ids: tokens that end a reply.
      mesh: devices of the replica, None for the default device.
    """
    shardings = None if mesh is None else _state_shardings(mesh, model_cfg)
    prompts = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    dtype = jnp.dtype(model_cfg.compute_dtype)

    def init(capacity: int) -> decode.DecodeState:
        return decode.init_state(
            model_cfg,
            cfg.num_slots,
            capacity=capacity,
            max_reply_tokens=cfg.max_reply_tokens,
        )

    def prefill(
        params: qwen2.Params, state: decode.DecodeState, admission: decode.Admission
    ) -> decode.DecodeState:
        return decode.prefill(
            graphdef, params, state, admission, chunk_size=cfg.prefill_chunk
        )

    def run(
        params: qwen2.Params, state: decode.DecodeState, keep_B: jax.Array
    ) -> decode.DecodeState:
        return decode.decode(
            graphdef,
            params,
            state,
            keep_B,
            method=SamplingMethod.from_config(cfg),
            end_ids=end_ids,
            num_steps=cfg.steps_per_call,
        )

    cast = jax.jit(lambda params: jax.tree.map(lambda p: p.astype(dtype), params))

    def cast_if_needed(params: qwen2.Params) -> qwen2.Params:
        is_same = all(leaf.dtype == dtype for leaf in jax.tree.leaves(params))
        return params if is_same else cast(params)

    return Programs(
        init=jax.jit(init, static_argnums=0, out_shardings=shardings),
        grow=jax.jit(decode.grow, static_argnums=1, out_shardings=shardings),
        prefill=jax.jit(prefill, donate_argnums=1, out_shardings=shardings),
        decode=jax.jit(run, donate_argnums=1, out_shardings=shardings),
        cast=cast_if_needed,
        put=lambda tree: jax.device_put(tree, prompts),
    )


def _state_shardings(mesh: Mesh, model_cfg: ModelConfig) -> decode.DecodeState:
    """Returns a sharding for every array of the state: heads over `tensor`."""
    whole = NamedSharding(mesh, PartitionSpec())
    is_split = model_cfg.num_kv_heads % mesh.shape[TENSOR] == 0
    heads = NamedSharding(mesh, PartitionSpec(None, None, None, TENSOR, None))
    abstract = jax.eval_shape(
        lambda: decode.init_state(model_cfg, 1, capacity=1, max_reply_tokens=1)
    )
    state = jax.tree.map(lambda _: whole, abstract)
    if not is_split:
        return state
    cache = dataclasses.replace(state.cache, k_LBSKH=heads, v_LBSKH=heads)
    return dataclasses.replace(state, cache=cache)
