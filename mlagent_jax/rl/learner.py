"""The learning half of PPO on a mesh: rollout in, new state out (stages 2 to 4).

Scoring a reply needs no reward, so it can begin before the scripts have ended.

Owns what does not change during a run: compiled programs, placement of the state,
the frozen reference. The state itself belongs to the caller.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic
from typing import Any

import jax
import numpy as np
from jax import Array

from mlagent_jax.config import ModelConfig, PpoConfig, RunConfig
from mlagent_jax.parallel.fit import check_stage
from mlagent_jax.parallel.mesh import DATA, FSDP, make_mesh
from mlagent_jax.parallel.sharding import (
    batch_sharding,
    place,
    replicated,
    tree_shardings,
)
from mlagent_jax.rl.batch import RolloutBatch, Scores, TokenSample, pad_samples
from mlagent_jax.rl.estimate import make_estimate_fn
from mlagent_jax.rl.kl_control import adapt_kl_coef
from mlagent_jax.rl.passes import Passes, RowPasses, TokenPasses
from mlagent_jax.rl.ppo import (
    PpoState,
    init_ppo_state,
    init_values,
    make_optimizers,
)
from mlagent_jax.rl.rollout import Rollout, derive_seed
from mlagent_jax.rl.timeline import SCORING, UPDATE, Timeline
from mlagent_jax.rl.token_cut import row_lengths
from mlagent_jax.train.state import Params

Samples = Sequence[TokenSample | None]  # one a row of an update


class Learner:
    """Scores rollouts and updates actor and critic.

    Args:
      config: of the run.
      graphdef: of the model.
      model_cfg: its shape.
      sft_params: the policy before the first update; kept as the reference if there
        is a KL penalty, else only looked at for its shape.
      timeline: gets what the device did when.

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
        timeline: Timeline | None = None,
    ) -> None:
        cfg, temperature = config.ppo, config.sample.temperature
        mesh = make_mesh(config.mesh)
        check_stage(config, model_cfg, mesh.size, "ppo")
        optimizers = make_optimizers(cfg)
        critic_key = jax.random.key(derive_seed(config.seed, "critic"))

        def make_state(policy_params: Params) -> PpoState:
            critic_params = init_values(cfg, model_cfg, policy_params, critic_key)
            return init_ppo_state(
                policy_params, critic_params, optimizers, kl_coef=cfg.kl_coef
            )

        abstract_state = jax.eval_shape(make_state, sft_params)
        shardings = tree_shardings(mesh, abstract_state)
        self.abstract_state: PpoState = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            abstract_state,
            shardings,
        )
        self._cfg = cfg
        self._timeline = Timeline() if timeline is None else timeline
        self._begun: tuple[Samples, _Scoring] | None = None
        self._waiter = ThreadPoolExecutor(1, "scoring")
        self._mesh = mesh
        self._seed = config.seed
        self._rows_sharding = batch_sharding(mesh)
        self._params_shardings = shardings.actor.params
        self._ref_params: Params | None = None
        if cfg.kl_coef > 0:
            self._ref_params = jax.device_put(sft_params, self._params_shardings)
        self._init = jax.jit(make_state, out_shardings=shardings)
        self._estimate = make_estimate_fn(cfg)
        self._adapt = jax.jit(self._adapted_kl_coef, out_shardings=replicated(mesh))
        settings: dict[str, Any] = {
            "temperature": temperature,
            "state_shardings": shardings,
            "replicated": replicated(mesh),
        }
        self._passes: Passes
        if cfg.micro_batch_tokens is None:
            self._passes = RowPasses(graphdef, cfg, optimizers, **settings)
        else:
            num_parts = mesh.shape[DATA] * mesh.shape[FSDP]
            self._passes = TokenPasses(
                graphdef, cfg, optimizers, **settings, num_parts=num_parts
            )

    def init_state(self, sft_params: Params) -> PpoState:
        """Returns the state before the first update; the critic starts from these."""
        return self._init(jax.device_put(sft_params, self._params_shardings))

    def begin(self, state: PpoState, samples: Samples) -> None:
        """Starts scoring the replies of the next `update`, and does not wait for it.

        Args:
          state: of that update.
          samples: one a row of its rollout; rewards are not looked at.
        """
        with jax.set_mesh(self._mesh):
            batch, lengths = self._lay_out(samples, self._cfg.seq_lens)
            scoring = self._start_scoring(state, batch, lengths)
            self._begun = samples, scoring

    def update(
        self, state: PpoState, rollout: Rollout
    ) -> tuple[PpoState, dict[str, float]]:
        """Returns the state after one rollout, and metrics; `state` is used up."""
        with jax.set_mesh(self._mesh):
            return self._update(state, rollout)

    def _update(
        self, state: PpoState, rollout: Rollout
    ) -> tuple[PpoState, dict[str, float]]:
        samples = rollout.token_samples()
        scoring = self._take_begun(samples)
        seq_lens = (scoring.seq_len,) if scoring else self._cfg.seq_lens
        batch, lengths = self._lay_out(samples, seq_lens)
        scoring = scoring or self._start_scoring(state, batch, lengths)
        score_s = scoring.seconds.result()
        scored = monotonic()
        ppo_batch, estimates = self._estimate(batch, scoring.scores, state.kl_coef)
        is_warmup = rollout.update < self._cfg.critic_warmup_updates
        steps: list[dict[str, Array]] = []
        for rows in minibatch_rows(self._cfg, self._seed, rollout.update):
            state, step_metrics = self._passes.step(
                state, ppo_batch, rows, lengths, is_warmup=is_warmup
            )
            steps.append(step_metrics)
        metrics = _to_floats(jax.device_get((estimates, *steps)))
        if self._cfg.kl.target is not None:
            metrics["kl_coef"] = float(state.kl_coef)
            if not is_warmup:
                kl_coef = self._adapt(state.kl_coef, estimates["kl_to_reference"])
                state = dataclasses.replace(state, kl_coef=kl_coef)
        metrics["seq_len"] = float(batch.tokens_BT.shape[1])
        end = monotonic()
        self._timeline.add(UPDATE, "update", scored, end)
        metrics["score_s"] = score_s
        metrics["update_s"] = end - scored
        return state, metrics

    def _take_begun(self, samples: Samples) -> "_Scoring | None":
        """Returns what `begin` started, if that scores each of `samples` in its row."""
        begun, self._begun = self._begun, None
        return begun[1] if begun and _cover(begun[0], samples) else None

    def _lay_out(
        self, samples: Samples, seq_lens: Sequence[int]
    ) -> tuple[RolloutBatch, np.ndarray]:
        """Returns the samples on the mesh, and how many tokens each row has."""
        padded = pad_samples(samples, seq_lens)
        lengths = row_lengths(padded.segment_ids_BT)
        return place(padded, self._rows_sharding), lengths

    def _start_scoring(
        self, state: PpoState, batch: RolloutBatch, lengths: np.ndarray
    ) -> "_Scoring":
        start = monotonic()
        scores = self._passes.score(state, self._ref_params, batch, lengths)

        def wait() -> float:
            jax.block_until_ready(scores)
            end = monotonic()
            self._timeline.add(SCORING, "scoring", start, end)
            return end - start

        return _Scoring(
            seq_len=batch.tokens_BT.shape[1],
            scores=scores,
            seconds=self._waiter.submit(wait),
        )

    def _adapted_kl_coef(self, kl_coef: Array, kl: Array) -> Array:
        target = self._cfg.kl.target
        assert target is not None
        return adapt_kl_coef(
            kl_coef,
            kl,
            target=target,
            horizon=self._cfg.kl.horizon,
            num_samples=self._cfg.rows_per_update,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scoring:
    """Scores that the device is computing, or has computed.

    Attributes:
      seq_len: that rows were padded to.
      scores: for `estimate`.
      seconds: from the start to the end of it.
    """

    seq_len: int
    scores: Scores
    seconds: Future[float]


def _cover(scored: Samples, samples: Samples) -> bool:
    """Returns whether each of `samples` has its tokens in its place in `scored`."""
    return len(samples) == len(scored) and all(
        sample is None
        or other is not None
        and (list(sample.prompt), list(sample.reply))
        == (list(other.prompt), list(other.reply))
        for sample, other in zip(samples, scored, strict=True)
    )


def minibatch_rows(cfg: PpoConfig, seed: int, update: int) -> Iterator[np.ndarray]:
    """Yields the rows of each minibatch; every epoch deals all rows out anew."""
    for epoch in range(cfg.num_epochs):
        rng = np.random.default_rng(derive_seed(seed, update, "epoch", epoch))
        rows = rng.permutation(cfg.rows_per_update).astype(np.int32)
        yield from rows.reshape(-1, cfg.minibatch_size)


def _to_floats(parts: Any) -> dict[str, float]:
    """Returns name -> mean over the parts that have it."""
    values: dict[str, list[float]] = {}
    for part in parts:
        for name, value in part.items():
            values.setdefault(name, []).append(float(value))
    return {name: float(np.mean(v)) for name, v in values.items()}
