"""The learning half of PPO on a mesh: rollout in, new state out (stages 2 to 4).

Owns what does not change during a run: compiled programs, placement of the state,
the frozen reference. The state itself belongs to the caller.
"""

from collections.abc import Iterator
from time import monotonic
from typing import Any

import jax
import numpy as np
from jax import Array

from mlagent_jax.config import ModelConfig, PpoConfig, RunConfig
from mlagent_jax.errors import ConfigError
from mlagent_jax.model.critic import init_critic
from mlagent_jax.parallel.mesh import DATA, FSDP, make_mesh
from mlagent_jax.parallel.sharding import batch_sharding, replicated, tree_shardings
from mlagent_jax.rl.batch import PpoBatch, pad_samples
from mlagent_jax.rl.ppo import (
    PpoState,
    init_ppo_state,
    make_estimate_fn,
    make_optimizers,
    make_ppo_step,
    make_score_fn,
)
from mlagent_jax.rl.rollout import Rollout, derive_seed
from mlagent_jax.train.state import Params


class Learner:
    """Scores rollouts and updates actor and critic.

    Args:
      config: of the run.
      graphdef: of the model.
      model_cfg: its shape.
      sft_params: initial policy; also initialises the critic and stays as reference.

    Raises:
      ConfigError: the mesh fits neither the model nor the micro-batches.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        graphdef: Any,
        model_cfg: ModelConfig,
        sft_params: Params,
    ) -> None:
        cfg, temperature = config.ppo, config.sample.temperature
        mesh = make_mesh(config.mesh)
        num_parts = mesh.shape[DATA] * mesh.shape[FSDP]
        if cfg.micro_batch_size % num_parts != 0:
            raise ConfigError(
                f"ppo.micro_batch_size = {cfg.micro_batch_size}: expected a multiple "
                f"of the {num_parts} devices along {DATA} and {FSDP}"
            )
        optimizers = make_optimizers(cfg)
        critic_key = jax.random.key(derive_seed(config.seed, "critic"))

        def make_state(policy_params: Params) -> PpoState:
            critic_params = init_critic(model_cfg, policy_params, critic_key)
            return init_ppo_state(policy_params, critic_params, optimizers)

        abstract_state = jax.eval_shape(make_state, sft_params)
        shardings = tree_shardings(mesh, abstract_state)
        self.abstract_state: PpoState = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            abstract_state,
            shardings,
        )
        self._cfg = cfg
        self._seed = config.seed
        self._rows_sharding = batch_sharding(mesh)
        self._replicated = replicated(mesh)
        self._ref_params = jax.device_put(sft_params, shardings.actor.params)
        self._init = jax.jit(make_state, out_shardings=shardings)
        self._score = make_score_fn(graphdef, cfg, temperature=temperature)
        self._estimate = make_estimate_fn(cfg)
        self._take_rows = jax.jit(take_rows)
        # Indexed by "is the critic warming up?"; compiled when first called.
        self._steps = {
            is_warmup: make_ppo_step(
                graphdef,
                cfg,
                optimizers,
                temperature=temperature,
                is_warmup=is_warmup,
                state_shardings=shardings,
            )
            for is_warmup in (False, True)
        }

    def init_state(self) -> PpoState:
        """Returns the state before the first update."""
        return self._init(self._ref_params)

    def update(
        self, state: PpoState, rollout: Rollout
    ) -> tuple[PpoState, dict[str, float]]:
        """Returns the state after one rollout, and metrics; `state` is used up."""
        start = monotonic()
        batch = jax.device_put(
            pad_samples(rollout.token_samples(), self._cfg.seq_lens),
            self._rows_sharding,
        )
        scores = self._score(
            state.actor.params, self._ref_params, state.critic.params, batch
        )
        ppo_batch, estimates = jax.block_until_ready(self._estimate(batch, scores))
        scored = monotonic()
        step = self._steps[rollout.update < self._cfg.critic_warmup_updates]
        steps: list[dict[str, Array]] = []
        for rows in minibatch_rows(self._cfg, self._seed, rollout.update):
            rows_B = jax.device_put(rows, self._replicated)
            state, step_metrics = step(state, self._take_rows(ppo_batch, rows_B))
            steps.append(step_metrics)
        metrics = _to_floats(jax.device_get((estimates, *steps)))
        metrics["seq_len"] = float(batch.tokens_BT.shape[1])
        metrics["score_s"] = scored - start
        metrics["update_s"] = monotonic() - scored
        return state, metrics


def take_rows(batch: PpoBatch, rows_B: Array) -> PpoBatch:
    """Returns the minibatch of the rows with the given indices."""
    return jax.tree.map(lambda x: x[rows_B], batch)


def minibatch_rows(cfg: PpoConfig, seed: int, update: int) -> Iterator[np.ndarray]:
    """Yields the rows of each minibatch; every epoch deals all rows out anew."""
    num_samples = cfg.states_per_update * cfg.samples_per_state
    for epoch in range(cfg.num_epochs):
        rng = np.random.default_rng(derive_seed(seed, update, "epoch", epoch))
        rows = rng.permutation(num_samples).astype(np.int32)
        yield from rows.reshape(-1, cfg.minibatch_size)


def _to_floats(parts: Any) -> dict[str, float]:
    """Returns name -> mean over the parts that have it."""
    values: dict[str, list[float]] = {}
    for part in parts:
        for name, value in part.items():
            values.setdefault(name, []).append(float(value))
    return {name: float(np.mean(v)) for name, v in values.items()}
