"""Evaluation on the side of training, for the curve of the paper's Figure 4.

Every few updates the policy runs a few whole trajectories of every task. The result
goes into probes.jsonl and nowhere else: no training decision depends on it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mlagent_jax.config import RunConfig
from mlagent_jax.env.runner import TrajectorySpec, run_trajectories
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.step_loop import Pool
from mlagent_jax.parallel import hosts
from mlagent_jax.policy.base import Policy
from mlagent_jax.rl.rollout import derive_seed
from mlagent_jax.train.stopping import StopSignal
from mlagent_jax.types import Task, Trajectory


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """How one trajectory ended.

    Attributes:
      score: of the final submission on the hidden test part.
      relative_gain_percent: of that score over the starter's.
    """

    score: float
    relative_gain_percent: float


ScoreTrajectory = Callable[[Trajectory, Task, SnapshotStore], ProbeScore]


def run_probe(
    *,
    config: RunConfig,
    policy: Policy,
    workers: Pool,
    tasks: Mapping[str, Task],
    store: SnapshotStore,
    score_trajectory: ScoreTrajectory,
    stop: StopSignal | None = None,
) -> list[dict[str, Any]]:
    """Returns one record a trajectory, ordered by task; the same seeds every time.

    A trajectory that the runner dropped is left out.

    Args:
      config: its `ppo.probe_trajectories` and `eval` sections are used.
      policy: who replies.
      workers: execute the actions.
      tasks: task id -> task, held-in and held-out.
      store: snapshots and submissions.
      score_trajectory: scores a trajectory on the hidden test part.
      stop: cuts the probe short; None for never.

    Raises:
      RunInterruptedError: `stop` was set on some host.
    """
    stop = stop or StopSignal()
    specs = [
        TrajectorySpec(
            id=f"probe/{task_id}/{k:03d}",
            task_id=task_id,
            seed=derive_seed(config.seed, "probe", task_id, k),
            ideas=(),
            max_steps=config.eval.max_steps,
        )
        for task_id in sorted(tasks)
        for k in range(config.ppo.probe_trajectories)
    ]

    def run_my_trajectories() -> dict[str, dict[str, Any]]:
        trajectories = run_trajectories(
            hosts.mine(specs),
            policy=policy,
            pool=workers,
            tasks=tasks,
            store=store,
            prompt=config.prompt,
            env=config.env,
            num_in_flight=config.eval.num_in_flight,
        )
        return {
            trajectory.id: _record(trajectory, tasks, store, score_trajectory)
            for trajectory in trajectories
        }

    records: dict[str, dict[str, Any]] = {}
    for part in hosts.gather(stop.interruptible(run_my_trajectories)):
        if part is None:
            raise stop.error("in a probe")
        records |= part
    return [records[spec.id] for spec in specs if spec.id in records]


def _record(
    trajectory: Trajectory,
    tasks: Mapping[str, Task],
    store: SnapshotStore,
    score_trajectory: ScoreTrajectory,
) -> dict[str, Any]:
    task = tasks[trajectory.task_id]
    return {
        "task": task.id,
        "split": task.split,
        "num_steps": len(trajectory.steps),
        **dataclasses.asdict(score_trajectory(trajectory, task, store)),
    }
