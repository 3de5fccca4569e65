"""Runs a policy on tasks and stores scored records; resumes by record id.

Every policy gets the same seeds, steps and time. Which process executes what, and
in which order things finish, changes nothing in the records but their order.
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from mlagent_jax.config import RunConfig
from mlagent_jax.data.jsonl import heal
from mlagent_jax.data.state_pool import StatePool
from mlagent_jax.env.reward import compute_reward, trajectory_rewards
from mlagent_jax.env.runner import (
    StepJob,
    TrajectorySpec,
    check_complete,
    run_steps,
    run_trajectories,
    until_stopped,
)
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.step_loop import Pool
from mlagent_jax.errors import PolicyError
from mlagent_jax.evaluation.records import (
    EvalRecord,
    FreshStepRecord,
    append_record,
    read_records,
    score_trajectory,
)
from mlagent_jax.evaluation.search import make_search
from mlagent_jax.policy.base import Policy, Reply, Request
from mlagent_jax.text.profiles import DIRECT, Profile
from mlagent_jax.types import Action, ActionKind, Task

# Names of policies that a tree search runs over, e.g. "tree:ppo".
SEARCH_PREFIX: Final = "tree:"


class StarterPolicy:
    """Submits the starter as it is: the row that every gain is measured against."""

    name = "starter"

    def __init__(self, profile: Profile = DIRECT) -> None:
        self._reply = profile.render_action(Action(kind=ActionKind.SUBMIT))
        self._waiting: list[Request] = []

    def submit(self, request: Request) -> None:
        """Queues a request."""
        self._waiting.append(request)

    def poll(self) -> list[Reply]:
        """Answers everything that waits."""
        waiting, self._waiting = self._waiting, []
        return [
            Reply(request_id=r.id, text=self._reply, finish="stop") for r in waiting
        ]

    def num_pending(self) -> int:
        """Returns how many requests wait."""
        return len(self._waiting)

    def close(self) -> None:
        """Has nothing to release."""


def evaluate_trajectories(
    config: RunConfig,
    path: Path,
    policy: Policy,
    *,
    tasks: Mapping[str, Task],
    pool: Pool,
    store: SnapshotStore,
    on_done: Callable[[], object],
    stop_reason: Callable[[], str] = lambda: "",
) -> list[EvalRecord]:
    """Returns k scored trajectories for each task, running those not in `path`.

    Args:
      config: its `eval` section gives k, steps and trajectories in flight. A policy
        whose name starts with "tree:" is searched over instead, with the same steps.
      path: JSONL file of EvalRecords; appended to.
      policy: who replies.
      tasks: task id -> task, held-in and held-out.
      pool: executes actions.
      store: snapshots and submissions.
      on_done: called once for every finished trajectory, resumed ones included.
      stop_reason: asked before each trajectory begins; a text ends the evaluation
        once those under way are finished.

    Raises:
      PolicyError: `stop_reason` gave one; what was finished is recorded.
    """
    heal(path)
    records = read_records(path, EvalRecord)
    done = {record.trajectory.id for record in records}
    for _ in done:
        on_done()
    specs = [
        TrajectorySpec(
            id=f"{task_id}/{policy.name}/{k:03d}",
            task_id=task_id,
            seed=_seed(config.seed, task_id, k),
            ideas=(),
            max_steps=config.eval.max_steps,
        )
        for k in range(config.eval.trajectories_per_task)
        for task_id in sorted(tasks)
    ]
    is_search = policy.name.startswith(SEARCH_PREFIX)
    for trajectory in run_trajectories(
        until_stopped([s for s in specs if s.id not in done], stop_reason),
        policy=policy,
        pool=pool,
        tasks=tasks,
        store=store,
        prompt=config.prompt,
        env=config.env,
        num_in_flight=config.eval.num_in_flight,
        make_attempt=make_search(config.eval.search, tasks) if is_search else None,
    ):
        task = tasks[trajectory.task_id]
        rewards = trajectory_rewards(trajectory, task, config.ppo.reward)
        final = "selection" if is_search else config.eval.final
        record = score_trajectory(trajectory, task, store, rewards, final)
        append_record(path, record)
        records.append(record)
        on_done()
    check_complete(policy.name, len(records), len(specs), stop_reason())
    return records


def evaluate_fresh_states(
    config: RunConfig,
    path: Path,
    policy: Policy,
    *,
    states: StatePool,
    tasks: Mapping[str, Task],
    pool: Pool,
    store: SnapshotStore,
    on_done: Callable[[], object],
    stop_reason: Callable[[], str] = lambda: "",
) -> list[FreshStepRecord]:
    """Returns the rewards of `policy` on states that no training saw.

    The states and seeds are the same for every policy, so that two policies can be
    compared state by state.

    Args:
      config: its `eval` section gives the numbers of states and samples.
      path: JSONL file of FreshStepRecords; appended to.
      policy: who replies.
      states: pool cut from the fresh trajectories.
      tasks: task id -> task.
      pool: executes actions.
      store: snapshots.
      on_done: called once for every finished step, resumed ones included.
      stop_reason: asked before each step; a text ends the evaluation.

    Raises:
      PolicyError: `stop_reason` gave one; what was finished is recorded.
    """
    heal(path)
    records = read_records(path, FreshStepRecord)
    done = {(record.state_id, record.sample) for record in records}
    for _ in done:
        on_done()
    num_states = config.eval.fresh_states * len(config.held_in)
    jobs: dict[str, tuple[str, int]] = {}
    todo: list[StepJob] = []
    for pool_state in states.sample(seed=config.seed, n=min(num_states, len(states))):
        for sample in range(config.eval.samples_per_state):
            if (pool_state.id, sample) in done:
                continue
            job_id = f"{pool_state.id}#{sample}"
            jobs[job_id] = (pool_state.id, sample)
            seed = _seed(config.seed, pool_state.id, sample)
            todo.append(
                StepJob(
                    id=job_id,
                    state=pool_state.state,
                    seed=seed,
                    has_siblings=config.eval.samples_per_state > 1,
                )
            )
    for job, _, step in run_steps(
        itertools.takewhile(lambda _: not stop_reason(), todo),
        policy=policy,
        pool=pool,
        tasks=tasks,
        store=store,
        prompt=config.prompt,
        env=config.env,
        num_in_flight=config.eval.num_in_flight,
    ):
        on_done()
        if step is None:
            continue
        state_id, sample = jobs[job.id]
        task = tasks[job.state.task_id]
        record = FreshStepRecord(
            state_id=state_id,
            task_id=task.id,
            sample=sample,
            outcome=step.outcome,
            reward=compute_reward(job.state, step, task, config.ppo.reward).total,
        )
        append_record(path, record)
        records.append(record)
    if reason := stop_reason():
        raise PolicyError(
            f"{policy.name}: stopped on fresh states: {reason}. Nothing is lost; "
            "change that and run the same command again"
        )
    return records


def _seed(seed: int, name: str, index: int) -> int:
    digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
