"""The programs of a run as `parallel.aot.Program`s: what the launchers run, abstract.

Each builder calls the very factories that a stage calls (`make_lm_step`,
`make_score_fn`, `make_ppo_step`, `make_programs`) and traces them for
`jax.ShapeDtypeStruct`s; no array is made. The sampler's are those of one replica: the
chips of one host, split by tensor parallelism (design: every host samples alone).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mlagent_jax.config import MeshConfig, ModelConfig, RunConfig, SampleConfig
from mlagent_jax.data.pipeline import SftBatch
from mlagent_jax.errors import ConfigError
from mlagent_jax.model import flops, qwen2
from mlagent_jax.model.cache import Readers
from mlagent_jax.model.critic import init_critic
from mlagent_jax.parallel import topology
from mlagent_jax.parallel.aot import Program
from mlagent_jax.parallel.fit import tensor_sizes
from mlagent_jax.parallel.mesh import make_mesh
from mlagent_jax.parallel.sharding import batch_sharding, replicated
from mlagent_jax.parallel.topology import Slice
from mlagent_jax.rl.batch import PpoBatch, RolloutBatch
from mlagent_jax.rl.objective import make_score_fn
from mlagent_jax.rl.ppo import init_ppo_state, make_optimizers, make_ppo_step
from mlagent_jax.sample import decode
from mlagent_jax.sample.programs import (
    make_programs,
    state_sharding,
    weights_sharding,
)
from mlagent_jax.train.lm import abstract_on_mesh, make_lm_step
from mlagent_jax.train.optimizer import make_optimizer
from mlagent_jax.train.state import init_state

_SCHEDULE_LENGTH = 1_000  # updates; changes no shape
_END_ID = 0  # changes no shape
_INTEGERS = ("tokens_BT", "positions_BT", "segment_ids_BT")


def sft_program(config: RunConfig, model: ModelConfig, target: Slice) -> Program:
    """Returns one update of fine-tuning at the longest padded length."""
    cfg = config.sft
    mesh = make_mesh(config.mesh, topology.devices(target))
    optimizer = make_optimizer(cfg.optimizer, _SCHEDULE_LENGTH)
    state = abstract_on_mesh(
        jax.eval_shape(
            lambda params: init_state(params, optimizer), qwen2.abstract_params(model)
        ),
        mesh,
    )
    batch = _batch(SftBatch, mesh, cfg.batch_size, cfg.seq_lens[-1])
    step = make_lm_step(
        qwen2.make_graphdef(model),
        optimizer,
        micro_batches=cfg.batch_size // cfg.micro_batch_size,
        state_shardings=jax.tree.map(lambda x: x.sharding, state),
        rows_sharding=batch_sharding(mesh),
    )
    return Program(
        name="sft",
        lower=_on_mesh(mesh, step, state, batch),
        mesh=mesh,
        target=target,
        held={"parameters": state.params, "optimizer": state.opt_state},
        model_flops=flops.train_flops(
            model, num_rows=cfg.batch_size, seq_len=cfg.seq_lens[-1]
        ),
        settings=_settings(model, cfg.batch_size, cfg.micro_batch_size, cfg.seq_lens),
    )


def ppo_programs(
    config: RunConfig, model: ModelConfig, target: Slice
) -> tuple[Program, Program]:
    """Returns (scoring of a rollout, one update of actor and critic)."""
    cfg, temperature = config.ppo, config.sample.temperature
    mesh = make_mesh(config.mesh, topology.devices(target))
    graphdef = qwen2.make_graphdef(model)
    optimizers = make_optimizers(cfg)

    def make_state(params: qwen2.Params) -> Any:
        critic = init_critic(model, params, jax.random.key(0))
        return init_ppo_state(params, critic, optimizers)

    abstract = jax.eval_shape(make_state, qwen2.abstract_params(model))
    state = abstract_on_mesh(abstract, mesh)
    reference = abstract_on_mesh(qwen2.abstract_params(model), mesh)
    num_samples = cfg.rows_per_update
    seq_len = cfg.seq_lens[-1]
    rollout = _batch(RolloutBatch, mesh, num_samples, seq_len)
    score = make_score_fn(graphdef, cfg, temperature=temperature)
    actor, critic = state.actor.params, state.critic.params
    step = make_ppo_step(
        graphdef,
        cfg,
        optimizers,
        temperature=temperature,
        state_shardings=jax.tree.map(lambda x: x.sharding, state),
    )
    minibatch = _batch(PpoBatch, mesh, cfg.minibatch_size, seq_len)
    optimizer_states = (state.actor.opt_state, state.critic.opt_state)

    def model_flops(count: Callable[..., float], num_rows: int) -> tuple[float, float]:
        with_head, without = (
            count(model, num_rows=num_rows, seq_len=seq_len, has_head=has_head)
            for has_head in (True, False)
        )
        return with_head, without

    forward, critic_forward = model_flops(flops.forward_flops, num_samples)
    num_policies = 2 if cfg.kl_coef > 0 else 1
    common: dict[str, Any] = {"mesh": mesh, "target": target}
    return (
        Program(
            name="score",
            lower=_on_mesh(mesh, score, actor, reference, critic, rollout),
            held={"actor": actor, "reference": reference, "critic": critic},
            model_flops=num_policies * forward + critic_forward,
            settings=_settings(model, num_samples, cfg.micro_batch_size, cfg.seq_lens),
            **common,
        ),
        Program(
            name="ppo",
            lower=_on_mesh(mesh, step, state, minibatch),
            held={"actor": actor, "critic": critic, "optimizer": optimizer_states},
            model_flops=sum(model_flops(flops.train_flops, cfg.minibatch_size)),
            settings=_settings(
                model, cfg.minibatch_size, cfg.micro_batch_size, cfg.seq_lens
            ),
            **common,
        ),
    )


def sample_programs(
    config: RunConfig,
    model: ModelConfig,
    target: Slice,
    shared_tokens: int | None = None,
) -> tuple[Program, Program]:
    """Returns (prefill, decode) of one replica, with every row at full length.

    Args:
      config: its `sample` section is used.
      model: as it is built on TPU.
      target: one host of it is a replica.
      shared_tokens: how much of each prompt lies in a shared prefix, if
        `sample.num_prefixes` keeps any; None for all of the longest prompt.

    Raises:
      ConfigError: nothing is kept, or a prompt has fewer tokens.
    """
    cfg = config.sample
    longest = cfg.prompt_buckets[-1]
    shared = longest if cfg.num_prefixes else 0
    if shared_tokens is not None:
        if shared_tokens > shared:
            raise ConfigError(
                f"--shared_tokens={shared_tokens}: expected at most {shared}: "
                f"sample.num_prefixes = {cfg.num_prefixes}, longest prompt {longest}"
            )
        shared = shared_tokens
    host = Slice(chip=target.chip, shape=target.host_shape)
    tensor = max(
        n for n in tensor_sizes(model, host.num_chips) if host.num_chips % n == 0
    )
    # A tensor axis that is smaller than the host leaves replicas of it side by side.
    mesh = make_mesh(
        MeshConfig(data=host.num_chips // tensor, fsdp=1, tensor=tensor),
        topology.devices(host),
    )
    programs = make_programs(model, cfg, end_ids=(_END_ID,), mesh=mesh)
    weights = jax.eval_shape(programs.fuse, qwen2.abstract_params(model))
    weights = _placed(weights, weights_sharding(mesh, model))
    capacity = longest - shared + cfg.max_reply_tokens
    state = _placed(
        jax.eval_shape(lambda: programs.init(capacity, shared)),
        state_sharding(mesh, has_prefixes=shared > 0),
    )
    keep_B = _array(mesh, (cfg.num_slots,), bool)
    readers = None
    if shared:
        rows_PN: Any = _array(mesh, (cfg.num_prefixes, cfg.prefix_readers), jnp.int32)
        places_B: Any = _array(mesh, (cfg.num_slots,), jnp.int32)
        readers = Readers(rows_PN=rows_PN, places_B=places_B)
    common: dict[str, Any] = {
        "mesh": mesh,
        "target": host,
        "held": {"parameters": weights, "kv_cache": (state.cache, state.prefixes)},
        "settings": {
            "num_slots": cfg.num_slots,
            "capacity": capacity,
            "num_prefixes": cfg.num_prefixes,
            "shared_tokens": shared,
            "prefill_chunk": cfg.prefill_chunk,
        },
    }
    return (
        Program(
            name="prefill",
            lower=_on_mesh(
                mesh, programs.prefill, weights, state, _admission(cfg, mesh)
            ),
            model_flops=flops.forward_flops(
                model, num_rows=1, seq_len=cfg.prefill_chunk, has_head=False
            ),
            **common,
        ),
        Program(
            name="decode",
            lower=_on_mesh(mesh, programs.decode, weights, state, keep_B, readers),
            model_flops=flops.decode_flops(
                model, num_rows=cfg.num_slots, context=shared + capacity
            ),
            **common,
        ),
    )


def _placed(tree: Any, shardings: Any) -> Any:
    """Returns abstract arrays with the shardings of a prefix of their tree."""
    flat = jax.tree_util.tree_broadcast(shardings, tree)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, flat
    )


def _on_mesh(
    mesh: Mesh, function: Any, *arguments: Any
) -> Callable[[], jax.stages.Lowered]:
    def lower() -> jax.stages.Lowered:
        with jax.set_mesh(mesh):
            return function.lower(*arguments)

    return lower


def _batch(record: type[Any], mesh: Mesh, num_rows: int, seq_len: int) -> Any:
    """Returns a batch record of abstract arrays, shaped by its fields' suffixes."""
    rows = batch_sharding(mesh)

    def array(name: str) -> jax.ShapeDtypeStruct:
        shape = (num_rows, seq_len) if name.endswith("_BT") else (num_rows,)
        dtype = jnp.int32 if name in _INTEGERS else jnp.float32
        return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

    names = [field.name for field in dataclasses.fields(record)]
    return record(**{name: array(name) for name in names})


def _admission(cfg: SampleConfig, mesh: Mesh) -> decode.Admission:
    R = cfg.num_slots
    T = -(-cfg.prompt_buckets[-1] // cfg.prefill_chunk) * cfg.prefill_chunk
    one_R: Any = _array(mesh, (R,), jnp.int32)
    places = decode.Places(rows_R=one_R, sources_R=one_R, num_copied_R=one_R)
    arrays: dict[str, Any] = {
        "num": _array(mesh, (), jnp.int32),
        "tokens_RT": _array(mesh, (R, T), jnp.int32),
        "lengths_R": one_R,
        "num_shared_R": one_R,
        "key_data_R2": _array(mesh, (R, 2), jnp.uint32),
    }
    return decode.Admission(
        **arrays, rows=places, prefixes=places if cfg.num_prefixes else None
    )


def _array(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=replicated(mesh))


def _settings(
    model: ModelConfig, num_rows: int, micro_rows: int, seq_lens: tuple[int, ...]
) -> Mapping[str, Any]:
    return {
        "rows": num_rows,
        "micro_batch_rows": micro_rows,
        "tokens_a_row": seq_lens[-1],
        "remat": model.remat,
        "attention": model.attention,
    }
