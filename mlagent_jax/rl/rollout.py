"""One rollout of step-wise RL on the host: states -> replies -> steps -> rewards.

Each sample is one action from one state of the pool (paper A.5). Replies go to CPU
workers as they finish while the sampler goes on (`env.runner.run_steps`); the
result is in the order of the states and does not depend on what finished when.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Any

import numpy as np

from mlagent_jax.config import RunConfig
from mlagent_jax.data.state_pool import PoolState, StatePool
from mlagent_jax.env.reward import Reward, compute_reward
from mlagent_jax.env.runner import StepJob, run_steps
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.worker_pool import WorkerPool
from mlagent_jax.errors import EnvUnavailableError
from mlagent_jax.policy.base import Policy, Reply, Request
from mlagent_jax.rl.batch import TokenSample
from mlagent_jax.types import Outcome, StepRecord, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One (state, action, reward) of a rollout.

    Attributes:
      state_id: of the pool, "<trajectory id>@<step>".
      task: of the state.
      reply: what the policy wrote.
      step: what the environment made of it.
      reward: of the step.
    """

    state_id: str
    task: Task
    reply: Reply
    step: StepRecord
    reward: Reward


@dataclasses.dataclass(frozen=True, kw_only=True)
class DroppedSample:
    """A sample that does not count, for no fault of the agent's.

    Attributes:
      state_id: of the pool.
      reason: "env_failed", "policy_error" or "prompt_too_long".
    """

    state_id: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
    """The samples of one update.

    Attributes:
      update: index of the update, from 0.
      samples: in the order of the states; dropped ones keep their place.
      rollout_s: wall-clock seconds it took.
      sample_s: part of them that the policy was computing; in the rest it waited
        for workers.
    """

    update: int
    samples: tuple[Sample | DroppedSample, ...]
    rollout_s: float = 0.0
    sample_s: float = 0.0

    def kept(self) -> dict[int, Sample]:
        """Returns place -> sample of those that count."""
        pairs = enumerate(self.samples)
        return {i: sample for i, sample in pairs if isinstance(sample, Sample)}

    def dropped(self) -> Counter[str]:
        """Returns reason -> number of dropped samples."""
        return Counter(s.reason for s in self.samples if isinstance(s, DroppedSample))

    def token_samples(self) -> list[TokenSample | None]:
        """Returns one entry a sample for `batch.pad_samples`, None for dropped ones."""
        return [
            _token_sample(sample) if isinstance(sample, Sample) else None
            for sample in self.samples
        ]


def derive_seed(*parts: object) -> int:
    """Returns a seed below 2**31 that depends on every part and on nothing else."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1


def collect_rollout(
    update: int,
    *,
    config: RunConfig,
    policy: Policy,
    workers: WorkerPool,
    states: StatePool,
    tasks: Mapping[str, Task],
    store: SnapshotStore,
) -> Rollout:
    """Returns the samples of update number `update`.

    States and seeds follow from (config.seed, update), so the same policy gives the
    same rollout again.

    Args:
      update: index of the update, from 0.
      config: its `ppo`, `prompt` and `env` sections are used.
      policy: whose replies are sampled; must report tokens and log-probabilities.
      workers: execute the actions.
      states: pool to draw from.
      tasks: task id -> task.
      store: snapshots of the states.

    Raises:
      EnvUnavailableError: no sample of the rollout survived.
    """
    start = monotonic()
    timed_policy = _TimedPolicy(policy)
    cfg = config.ppo
    drawn = states.sample(derive_seed(config.seed, update), cfg.states_per_update)
    pool_states = [s for s in drawn for _ in range(cfg.samples_per_state)]
    jobs = [
        StepJob(
            id=f"{update:05d}/{index:05d}",
            state=pool_state.state,
            seed=derive_seed(config.seed, update, index),
            ideas=(),
        )
        for index, pool_state in enumerate(pool_states)
    ]
    answers = {
        job.id: (reply, step)
        for job, reply, step in run_steps(
            jobs,
            policy=timed_policy,
            pool=workers,
            tasks=tasks,
            store=store,
            prompt=config.prompt,
            env=config.env,
            # All at once: which requests share a decode batch must not depend on
            # when earlier actions happened to finish.
            num_in_flight=len(jobs),
        )
    }
    rollout = Rollout(
        update=update,
        samples=tuple(
            _make_sample(pool_state, *answers[job.id], config)
            for job, pool_state in zip(jobs, pool_states, strict=True)
        ),
        rollout_s=monotonic() - start,
        sample_s=timed_policy.busy_s,
    )
    if not rollout.kept():
        raise EnvUnavailableError(
            f"update {update}: all {len(jobs)} samples were dropped: "
            f"{dict(rollout.dropped())}"
        )
    return rollout


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Returns the numbers that describe a rollout; means are over kept samples.

    "improving" is a step whose score is better than the one before it; "cut" a reply
    that reached the token limit; `script_s` sums over scripts that really ran.
    """
    samples = list(rollout.kept().values())
    steps = [sample.step for sample in samples]
    rewards = [sample.reward.total for sample in samples]
    gains = [(s.step.score_after - s.step.score_before) * s.task.sign for s in samples]
    executions = [step.execution for step in steps if step.execution is not None]
    metrics = {
        "reward_mean": _mean(rewards),
        "reward_std": float(np.std(rewards)) if rewards else 0.0,
        "valid_action_rate": _mean(s.outcome != Outcome.INVALID_ACTION for s in steps),
        "improving_rate": _mean(gain > 0 for gain in gains),
        "reply_tokens": _mean(len(s.reply.tokens) for s in samples),
        "cut_rate": _mean(s.reply.finish == "length" for s in samples),
        "num_dropped": float(rollout.dropped().total()),
        "cached_frac": _mean(e.is_cached for e in executions),
        "script_s": sum(e.wall_s for e in executions if not e.is_cached),
        "rollout_s": rollout.rollout_s,
        "sample_s": rollout.sample_s,
    }
    for outcome in Outcome:
        metrics[f"outcome_frac/{outcome}"] = _mean(s.outcome == outcome for s in steps)
    return metrics


def rollout_records(rollout: Rollout) -> list[dict[str, Any]]:
    """Returns one JSON object a kept sample, for rollouts.jsonl and the report."""
    return [
        _record(rollout.update, index, sample)
        for index, sample in rollout.kept().items()
    ]


class _TimedPolicy:
    """A policy that counts the seconds it spends computing."""

    def __init__(self, policy: Policy) -> None:
        self.name = policy.name
        self.busy_s = 0.0
        self._policy = policy

    def submit(self, request: Request) -> None:
        self._policy.submit(request)

    def poll(self) -> list[Reply]:
        start = monotonic()
        replies = self._policy.poll()
        self.busy_s += monotonic() - start
        return replies

    def num_pending(self) -> int:
        return self._policy.num_pending()

    def close(self) -> None:
        self._policy.close()


def _mean(values: Iterable[float]) -> float:
    """Returns the mean, 0.0 of nothing."""
    numbers = [float(value) for value in values]
    return sum(numbers) / max(len(numbers), 1)


def _make_sample(
    pool_state: PoolState, reply: Reply, step: StepRecord | None, config: RunConfig
) -> Sample | DroppedSample:
    if step is None:
        reasons = {"error": "policy_error", "prompt_too_long": "prompt_too_long"}
        reason = reasons.get(reply.finish, "env_failed")
        return DroppedSample(state_id=pool_state.id, reason=reason)
    return Sample(
        state_id=pool_state.id,
        task=pool_state.task,
        reply=reply,
        step=step,
        reward=compute_reward(step, pool_state.task, config.ppo.reward),
    )


def _token_sample(sample: Sample) -> TokenSample:
    return TokenSample(
        prompt=sample.reply.prompt_tokens,
        reply=sample.reply.tokens,
        logprobs=sample.reply.logprobs,
        reward=sample.reward.total,
    )


def _record(update: int, index: int, sample: Sample) -> dict[str, Any]:
    reply, step, reward = sample.reply, sample.step, sample.reward
    return {
        "update": update,
        "sample": index,
        "task": sample.task.id,
        "state": sample.state_id,
        "reply": reply.text,
        "finish": reply.finish,
        "prompt_tokens": len(reply.prompt_tokens),
        "reply_tokens": len(reply.tokens),
        "is_cached": step.execution is not None and step.execution.is_cached,
        "outcome": step.outcome.value,
        "reason": step.reason,
        "score_before": step.score_before,
        "score_after": step.score_after,
        "reward": reward.total,
        "reward_parts": reward.parts,
        "reply_s": reply.seconds,
        "script_s": 0.0 if step.execution is None else step.execution.wall_s,
        "env_s": step.env_s,
    }
