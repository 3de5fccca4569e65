"""The programs of a run as `parallel.aot.Program`s: what the launchers run.

Each builder calls the very factories that a stage calls (`make_lm_step`,
`make_score_fn`, `make_ppo_step`, `make_programs`) and describes their arguments by
`jax.ShapeDtypeStruct`s; no array is made. `launch.aot` compiles them for devices that
are not there, `launch.measure` runs them. The sampler's are those of one replica: the
chips of one host, split by tensor parallelism (design: every host samples alone).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mlagent_jax.config import MeshConfig, ModelConfig, RunConfig, SampleConfig
from mlagent_jax.data.pipeline import SftBatch
from mlagent_jax.errors import ConfigError
from mlagent_jax.model import flops, hf, qwen2
from mlagent_jax.model.attention import resolve
from mlagent_jax.model.cache import Readers
from mlagent_jax.parallel.aot import Call, Program, device_bytes
from mlagent_jax.parallel.fit import tensor_sizes
from mlagent_jax.parallel.mesh import make_mesh
from mlagent_jax.parallel.sharding import batch_sharding, replicated
from mlagent_jax.rl.batch import PpoBatch, RolloutBatch
from mlagent_jax.rl.objective import make_score_fn
from mlagent_jax.rl.ppo import (
    init_ppo_state,
    init_values,
    make_optimizers,
    make_ppo_step,
)
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


def resolved_model(config: RunConfig, platform: str) -> ModelConfig:
    """Returns the run's model as jax's `platform` builds it: its attention is decided.

    Args:
      config: of the run.
      platform: "tpu", "gpu" or "cpu".
    """
    model = config.model or hf.model_of_run(config)
    name = resolve(model.attention, platform, model.compute_dtype)
    return dataclasses.replace(model, attention=name)


def sft_program(
    config: RunConfig, model: ModelConfig, devices: Sequence[Any]
) -> Program:
    """Returns one update of fine-tuning at the longest padded length."""
    cfg = config.sft
    mesh = make_mesh(config.mesh, devices)
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
    model_flops = flops.train_flops(
        model, num_rows=cfg.batch_size, seq_len=cfg.seq_lens[-1]
    )
    return Program(
        name="sft",
        function=step,
        arguments=(state, batch),
        mesh=mesh,
        held={"parameters": state.params, "optimizer": state.opt_state},
        model_flops=model_flops,
        call=Call(tokens=cfg.batch_size * cfg.seq_lens[-1], flops=model_flops),
        settings=_settings(model, cfg.batch_size, cfg.micro_batch_size, cfg.seq_lens),
    )


def ppo_programs(
    config: RunConfig, model: ModelConfig, devices: Sequence[Any]
) -> tuple[Program, Program]:
    """Returns (scoring of a rollout, one update of actor and critic)."""
    cfg, temperature = config.ppo, config.sample.temperature
    mesh = make_mesh(config.mesh, devices)
    graphdef = qwen2.make_graphdef(model)
    optimizers = make_optimizers(cfg)

    def make_state(params: qwen2.Params) -> Any:
        values = init_values(cfg, model, params, jax.random.key(0))
        return init_ppo_state(params, values, optimizers)

    abstract = jax.eval_shape(make_state, qwen2.abstract_params(model))
    state = abstract_on_mesh(abstract, mesh)
    has_penalty = cfg.kl_coef > 0
    reference = None
    if has_penalty:
        reference = abstract_on_mesh(qwen2.abstract_params(model), mesh)
    num_samples, seq_len = cfg.rows_per_update, cfg.seq_lens[-1]
    score = make_score_fn(graphdef, cfg, temperature=temperature)
    step = make_ppo_step(
        graphdef,
        cfg,
        optimizers,
        temperature=temperature,
        state_shardings=jax.tree.map(lambda x: x.sharding, state),
    )
    actor, critic = state.actor.params, state.critic and state.critic.params
    optimizer_states = state.actor.opt_state, state.critic and state.critic.opt_state
    has_own_critic = cfg.has_critic and cfg.value_model != "shared"

    def model_flops(
        count: Callable[..., float], num_rows: int, num_policies: int
    ) -> float:
        one = partial(count, model, num_rows=num_rows, seq_len=seq_len)
        critics = one(has_head=False) if has_own_critic else 0.0
        return num_policies * one() + critics

    def program(
        name: str,
        function: Any,
        arguments: tuple[Any, ...],
        *,
        held: Mapping[str, Any],
        num_rows: int,
        model_flops: float,
    ) -> Program:
        return Program(
            name=name,
            function=function,
            arguments=arguments,
            mesh=mesh,
            held={kind: tree for kind, tree in held.items() if tree is not None},
            model_flops=model_flops,
            call=Call(tokens=num_rows * seq_len, flops=model_flops),
            settings=_settings(model, num_rows, cfg.micro_batch_size, cfg.seq_lens),
        )

    return (
        program(
            "score",
            score,
            (
                actor,
                reference,
                critic,
                _batch(RolloutBatch, mesh, num_samples, seq_len),
            ),
            held={"actor": actor, "reference": reference, "critic": critic},
            num_rows=num_samples,
            model_flops=model_flops(
                flops.forward_flops, num_samples, 2 if has_penalty else 1
            ),
        ),
        program(
            "ppo",
            step,
            (state, _batch(PpoBatch, mesh, cfg.minibatch_size, seq_len)),
            held={"actor": actor, "critic": critic, "optimizer": optimizer_states},
            num_rows=cfg.minibatch_size,
            model_flops=model_flops(flops.train_flops, cfg.minibatch_size, 1),
        ),
    )


def shared_tokens(cfg: SampleConfig, asked: int | None) -> int:
    """Returns how many tokens of each prompt lie in a shared prefix.

    Args:
      cfg: `num_prefixes` says whether any are kept.
      asked: what the user wants; None for all of the longest prompt.

    Raises:
      ConfigError: nothing is kept, or a prompt has fewer tokens.
    """
    longest = cfg.prompt_buckets[-1]
    most = longest if cfg.num_prefixes else 0
    if asked is not None and asked > most:
        raise ConfigError(
            f"--shared_tokens={asked}: expected at most {most}: sample.num_prefixes = "
            f"{cfg.num_prefixes}, longest prompt {longest}"
        )
    return most if asked is None else asked


def sample_programs(
    config: RunConfig,
    model: ModelConfig,
    devices: Sequence[Any],
    shared: int,
) -> tuple[Program, Program]:
    """Returns (prefill, decode) of one replica, with every row at full length.

    Args:
      config: its `sample` section is used.
      model: as it is built on the devices.
      devices: of one host, which is a replica.
      shared: tokens of each prompt that lie in a shared prefix, see `shared_tokens`.
    """
    cfg = config.sample
    longest = cfg.prompt_buckets[-1]
    num = len(devices)
    tensor = max(n for n in tensor_sizes(model, num) if num % n == 0)
    # A tensor axis that is smaller than the host leaves replicas of it side by side.
    mesh = make_mesh(MeshConfig(data=num // tensor, fsdp=1, tensor=tensor), devices)
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
    held = {"parameters": weights, "kv_cache": (state.cache, state.prefixes)}
    common: dict[str, Any] = {
        "mesh": mesh,
        "held": held,
        "settings": {
            "num_slots": cfg.num_slots,
            "capacity": capacity,
            "num_prefixes": cfg.num_prefixes,
            "shared_tokens": shared,
            "prefill_chunk": cfg.prefill_chunk,
        },
    }
    step_flops = flops.decode_flops(
        model, num_rows=cfg.num_slots, context=shared + capacity
    )
    # Of the embedding a step reads a row a token; the output layer is an array apart.
    unread = device_bytes(weights.embedding_VD)
    steps = cfg.steps_per_call
    return (
        Program(
            name="prefill",
            function=programs.prefill,
            arguments=(weights, state, _admission(cfg, mesh)),
            model_flops=flops.forward_flops(
                model, num_rows=1, seq_len=cfg.prefill_chunk, has_head=False
            ),
            call=Call(
                tokens=cfg.num_slots * longest,
                flops=flops.forward_flops(
                    model, num_rows=cfg.num_slots, seq_len=longest, has_head=False
                ),
            ),
            **common,
        ),
        Program(
            name="decode",
            function=programs.decode,
            arguments=(weights, state, keep_B, readers),
            model_flops=step_flops,
            call=Call(
                tokens=steps * cfg.num_slots,
                flops=steps * step_flops,
                floor_bytes=steps * (device_bytes(held) - unread),
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
