"""States of the policy's own traces, mixed into those of the expert.

Paper A.5 freezes the states to the expert's; what the policy meets at evaluation are
its own. After each rollout the states that its actions led to become candidates for
later ones, chosen by learnability: how much the rewards around a state vary (nothing
is learnt where all actions do alike) times how far its score is from the best one.

The candidates follow from the rollouts alone and are logged by update, so a run that
goes on from a checkpoint draws the states it would have drawn.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlagent_jax.config import PpoConfig
from mlagent_jax.data.state_pool import PoolState, StatePool, take_in_turns
from mlagent_jax.env.advance import advance
from mlagent_jax.rl.records import UpdateLog
from mlagent_jax.rl.rollout import Rollout, Sample
from mlagent_jax.types import State, StepStatus, Task, from_json, to_json

# Gives a state without any spread of rewards a small chance to show some.
_LEAST_WEIGHT = 1e-4


class _Candidate(NamedTuple):
    state: PoolState
    learnability: float


class OwnStates:
    """The expert's pool, and the newest states of the policy's own rollouts.

    Args:
      experts: states of the expert.
      tasks: task id -> task.
      path: log of the candidates.
      cfg: `pool` says how many are drawn and how; `samples_per_state` how rewards
        are grouped.
      max_steps: steps of a trajectory; nothing starts behind the last.
    """

    def __init__(
        self,
        experts: StatePool,
        tasks: Mapping[str, Task],
        path: Path,
        cfg: PpoConfig,
        max_steps: int,
    ) -> None:
        self._experts = experts
        self._tasks = dict(tasks)
        self._path = path
        self._cfg = cfg
        self._max_steps = max_steps
        self._candidates: list[_Candidate] = []
        self._log: UpdateLog | None = None

    def open(self, first_update: int) -> None:
        """Goes on from the rollouts before `first_update`.

        Raises:
          DataError: the log is damaged.
        """
        self._log = UpdateLog(self._path, first_update)
        self._candidates = []
        with self._path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                value = json.loads(line)
                where = f"{self._path}:{number}"
                state = PoolState(
                    id=value["id"],
                    task=self._tasks[value["task"]],
                    state=from_json(State, value["state"], where),
                )
                self._candidates.append(_Candidate(state, value["learnability"]))
        self._trim()

    def close(self) -> None:
        """Closes the log."""
        if self._log is not None:
            self._log.close()

    def add(self, rollout: Rollout) -> None:
        """Takes the states that a rollout's actions led to, and logs them."""
        assert self._log is not None, "open() first"
        found = self._candidates_of(rollout)
        records = [
            {
                "id": candidate.state.id,
                "task": candidate.state.task.id,
                "learnability": candidate.learnability,
                "state": to_json(candidate.state.state),
            }
            for candidate in found
        ]
        self._log.append(rollout.update, records)
        self._candidates += found
        self._trim()

    def sample(self, seed: int, n: int) -> list[PoolState]:
        """Returns `n` states, up to `pool.own_frac` of them from own traces."""
        num_own = min(round(self._cfg.pool.own_frac * n), len(self._candidates))
        states = self._experts.sample(seed, n - num_own) if n > num_own else []
        rng = np.random.default_rng([seed, 1])
        chosen = take_in_turns(self._order_by_task(rng), rng, num_own)
        return states + [self._candidates[i].state for i in sorted(chosen)]

    def _order_by_task(self, rng: np.random.Generator) -> dict[str, list[int]]:
        """Returns task id -> its candidates; a weighted draw's first one comes last."""
        # Exponential times of arrival: sorted, they are a draw without replacement
        # in which each next one is chosen in proportion to its rate.
        arrivals = rng.exponential(size=len(self._candidates))
        if self._cfg.pool.by_learnability:
            rates = np.array([c.learnability for c in self._candidates])
            arrivals /= rates + _LEAST_WEIGHT
        of_task: dict[str, list[int]] = {task_id: [] for task_id in sorted(self._tasks)}
        for i in np.argsort(-arrivals).tolist():
            of_task[self._candidates[i].state.task.id].append(i)
        return of_task

    def sample_starts(self, seed: int, n: int) -> list[PoolState]:
        """Returns `n` states before a first step; own traces begin there as well."""
        return self._experts.sample_starts(seed, n)

    def _candidates_of(self, rollout: Rollout) -> list[_Candidate]:
        found: list[_Candidate] = []
        spreads = _reward_variances(rollout, self._cfg.samples_per_state)
        for index, sample in rollout.kept().items():
            is_over = sample.step.status is not StepStatus.ONGOING
            if sample.state is None or is_over:
                continue
            state = advance(sample.state, sample.step)
            if len(state.steps) < self._max_steps:
                pool_state = PoolState(
                    id=f"own/{rollout.update}/{index}", task=sample.task, state=state
                )
                left = headroom_left(sample.task, state.score)
                found.append(_Candidate(pool_state, spreads[index] * left))
        return found

    def _trim(self) -> None:
        del self._candidates[: -self._cfg.pool.own_size]


def headroom_left(task: Task, score: float) -> float:
    """Returns how far `score` is from the best: 1.0 at the baseline, 0.0 there."""
    if task.headroom == 0:
        return 0.0
    return min(max(task.sign * (task.best - score) / task.headroom, 0.0), 1.0)


def _reward_variances(rollout: Rollout, samples_per_state: int) -> dict[int, float]:
    """Returns place -> variance of the rewards around its state.

    Those of the other samples of the state; with one sample a state, those of all
    samples of its task.
    """

    def group_of(index: int, sample: Sample) -> object:
        return index // samples_per_state if samples_per_state > 1 else sample.task.id

    groups: dict[object, list[float]] = {}
    kept = rollout.kept()
    for index, sample in kept.items():
        groups.setdefault(group_of(index, sample), []).append(sample.reward.total)
    return {i: float(np.var(groups[group_of(i, s)])) for i, s in kept.items()}
