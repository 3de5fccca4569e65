"""The records of one rollout: what was sampled, what came of it, in numbers and lines.

`collect` makes rollouts; here are only the records, their metrics and the tokens that
the learner reads.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mlagent_jax.env.reward import Reward
from mlagent_jax.policy.base import Reply
from mlagent_jax.rl.batch import TokenSample
from mlagent_jax.types import Outcome, State, StepRecord, Task

# Gets the tokens of every sample, with rewards yet unknown; None without a reply.
OnSampled = Callable[[Sequence[TokenSample | None]], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One (state, action, reward) of a rollout.

    Attributes:
      state_id: of the pool, "<trajectory id>@<step>".
      task: of the state.
      reply: what the policy wrote.
      step: what the environment made of it.
      reward: of the step.
      state: where the action started; None where it is not kept, as on the disk.
      duration_s: seconds that the action counts for in duration-aware updates.
    """

    state_id: str
    task: Task
    reply: Reply
    step: StepRecord
    reward: Reward
    state: State | None = None
    duration_s: float = 0.0


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
      samples: in the order of the states (in mode "episode": of episodes, then of
        steps); dropped ones keep their place, None is behind the end of an episode.
      rollout_s: wall-clock seconds it took.
      sample_s: part of them that the policy was computing; in the rest it waited
        for workers.
    """

    update: int
    samples: tuple[Sample | DroppedSample | None, ...]
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


def reply_tokens(reply: Reply) -> TokenSample | None:
    """Returns the tokens of a reply whose reward is not known; None if it has none."""
    if not reply.is_answer:
        return None
    return TokenSample(
        prompt=reply.prompt_tokens,
        reply=reply.tokens,
        logprobs=reply.logprobs,
        reward=0.0,
    )


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Returns the numbers that describe a rollout; means are over kept samples.

    "improving" is a step whose score is better than the one before it; "cut" a reply
    that reached the token limit; `script_s` sums over scripts that really ran,
    `script_all_s` counts those that the cache answered at the time of their first run.
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
        "num_executions": float(len(executions)),
        "script_s": sum(e.wall_s for e in executions if not e.is_cached),
        "script_all_s": sum(e.wall_s for e in executions),
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


def _mean(values: Iterable[float]) -> float:
    """Returns the mean, 0.0 of nothing."""
    numbers = [float(value) for value in values]
    return sum(numbers) / max(len(numbers), 1)


def _token_sample(sample: Sample) -> TokenSample | None:
    tokens = reply_tokens(sample.reply)
    return tokens and dataclasses.replace(
        tokens, reward=sample.reward.total, duration_s=sample.duration_s
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
