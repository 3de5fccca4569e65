"""The jitted functions of the sampler: built by a factory, nothing at import."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlagent_jax.config import ModelConfig, SampleConfig
from mlagent_jax.model import qwen2
from mlagent_jax.model.cache import KVCache, Readers, key_axis_on
from mlagent_jax.model.decoder import DecoderWeights, fuse_weights
from mlagent_jax.parallel.mesh import TENSOR
from mlagent_jax.parallel.sharding import tree_shardings
from mlagent_jax.sample import decode
from mlagent_jax.sample.cpu_layout import turns_weights
from mlagent_jax.sample.methods import SamplingMethod


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """The compiled functions of one engine; prefill and decode reuse the state given.

    Attributes:
      init: (capacity, prefix capacity) -> a state without requests.
      grow: (state, capacity, prefix capacity) -> the same state with longer rows.
      prefill: (weights, state, admission) -> see `decode.prefill`.
      decode: (weights, state, keep_B, readers) -> see `decode.decode`.
      fuse: weights -> the sampler's copy of them, see `model.decoder`.
      put: numpy arrays -> device arrays, as an explicit transfer.
    """

    init: Callable[..., decode.DecodeState]
    grow: Callable[..., decode.DecodeState]
    prefill: Callable[..., decode.DecodeState]
    decode: Callable[..., decode.DecodeState]
    fuse: Callable[[qwen2.Params], DecoderWeights]
    put: Callable[[Any], Any]


def make_programs(
    model_cfg: ModelConfig,
    cfg: SampleConfig,
    end_ids: tuple[int, ...],
    mesh: Mesh | None,
) -> Programs:
    """Returns jitted functions that keep the state where the mesh puts it.

    Args:
      model_cfg: the model.
      cfg: decoding.
      end_ids: tokens that end a reply.
      mesh: devices of the replica, None for the default device.
    """
    shardings = None
    if mesh is not None:
        shardings = state_sharding(mesh, has_prefixes=cfg.num_prefixes > 0)
    split_cfg = model_cfg if mesh is None else split_kv_heads(mesh, model_cfg)
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    # Named even for one device: a state that no input has tied to its place is
    # another type than the one that `decode` returns, and would compile twice.
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    key_axis = key_axis_on(device.platform)
    is_turned = turns_weights(model_cfg, mesh)

    def init(capacity: int, prefix_capacity: int = 0) -> decode.DecodeState:
        return decode.init_state(
            split_cfg,
            cfg.num_slots,
            capacity=capacity,
            max_reply_tokens=cfg.max_reply_tokens,
            num_prefixes=cfg.num_prefixes,
            prefix_capacity=prefix_capacity,
            chunk_size=cfg.prefill_chunk,
            key_axis=key_axis,
        )

    def grow(
        state: decode.DecodeState, capacity: int, prefix_capacity: int = 0
    ) -> decode.DecodeState:
        return decode.grow(state, capacity, prefix_capacity, cfg.prefill_chunk)

    def prefill(
        weights: DecoderWeights, state: decode.DecodeState, admission: decode.Admission
    ) -> decode.DecodeState:
        return decode.prefill(
            split_cfg, weights, state, admission, chunk_size=cfg.prefill_chunk
        )

    def run(
        weights: DecoderWeights,
        state: decode.DecodeState,
        keep_B: jax.Array,
        readers: Readers | None = None,
    ) -> decode.DecodeState:
        return decode.decode(
            split_cfg,
            weights,
            state,
            keep_B,
            readers,
            method=SamplingMethod.from_config(cfg),
            end_ids=end_ids,
            num_steps=cfg.steps_per_call,
        )

    return Programs(
        init=jax.jit(init, static_argnums=(0, 1), out_shardings=shardings or first),
        grow=jax.jit(grow, static_argnums=(1, 2), out_shardings=shardings),
        prefill=jax.jit(prefill, donate_argnums=1, out_shardings=shardings),
        decode=jax.jit(run, donate_argnums=1, out_shardings=shardings),
        fuse=jax.jit(
            functools.partial(fuse_weights, split_cfg, is_turned=is_turned),
            out_shardings=None if mesh is None else weights_sharding(mesh, model_cfg),
        ),
        put=lambda tree: jax.device_put(tree, whole),
    )


def split_kv_heads(mesh: Mesh, model_cfg: ModelConfig) -> ModelConfig:
    """Returns the model as a replica runs it: whole key/value heads on every device.

    Devices that share a key/value head get a copy of it each, for their own query
    heads; each then keeps keys and values of the heads that it reads, no others.

    Args:
      mesh: devices of the replica.
      model_cfg: the model.

    Raises:
      ConfigError: `tensor` does not divide the query heads.
    """
    num_kv_heads = math.lcm(model_cfg.num_kv_heads, mesh.shape[TENSOR])
    return dataclasses.replace(model_cfg, num_kv_heads=num_kv_heads)


def weights_sharding(mesh: Mesh, model_cfg: ModelConfig) -> Any:
    """Returns where the sampler's copy of the weights lives: split over `tensor`."""
    if turns_weights(model_cfg, mesh):
        return NamedSharding(mesh, PartitionSpec())  # whole, on the one device
    abstract = jax.eval_shape(
        functools.partial(fuse_weights, split_kv_heads(mesh, model_cfg)),
        qwen2.abstract_params(model_cfg),
    )
    return tree_shardings(mesh, abstract)


def state_sharding(mesh: Mesh, *, has_prefixes: bool = False) -> decode.DecodeState:
    """Returns a sharding for every part of the state: heads over `tensor`."""
    # Shardings in the place of arrays: a prefix of the state, as `jax.jit` takes it.
    whole: Any = NamedSharding(mesh, PartitionSpec())
    heads: Any = NamedSharding(mesh, PartitionSpec(None, TENSOR))
    cache = KVCache(
        keys=heads,
        values=heads,
        lengths_B=whole,
        key_axis=key_axis_on(mesh.devices.flat[0].platform),
    )
    return decode.DecodeState(
        cache=cache,
        prefixes=cache if has_prefixes else None,
        tokens_B=whole,
        counts_B=whole,
        is_live_B=whole,
        key_data_B2=whole,
        reply_BT=whole,
        logprobs_BT=whole,
    )
