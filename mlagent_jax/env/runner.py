"""Runs a policy on tasks: whole trajectories, or single steps from given states.

Here it is decided when a trajectory ends; what a step does is the business of
`env.environment`. Results depend on seeds alone: timing changes only their order.
"""

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from mlagent_jax.config import EnvConfig, PromptConfig
from mlagent_jax.env.advance import advance
from mlagent_jax.env.environment import Start
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.step_loop import Pool, ResetDone, StepDone, StepJob, StepLoop
from mlagent_jax.errors import PolicyError
from mlagent_jax.policy.base import Policy, Reply
from mlagent_jax.types import State, StepRecord, StepStatus, Task, Trajectory

__all__ = [
    "Attempt",
    "OnStep",
    "StepJob",
    "TrajectorySpec",
    "request_seed",
    "run_steps",
    "run_trajectories",
]

_log = logging.getLogger(__name__)


OnStep = Callable[[StepJob, StepRecord], object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrajectorySpec:
    """A trajectory to be run.

    Attributes:
      id: of the trajectory.
      task_id: which task.
      seed: determines the policy's choices.
      ideas: idea texts for the prompt, empty for none.
      max_steps: steps after which it is cut; None means `EnvConfig.max_steps`.
    """

    id: str
    task_id: str
    seed: int
    ideas: tuple[str, ...] = ()
    max_steps: int | None = None


def run_steps(
    jobs: Iterable[StepJob],
    *,
    policy: Policy,
    pool: Pool,
    tasks: Mapping[str, Task],
    store: SnapshotStore,
    prompt: PromptConfig,
    env: EnvConfig,
    num_in_flight: int,
    on_all_replied: Callable[[], None] | None = None,
) -> Iterator[tuple[StepJob, Reply, StepRecord | None]]:
    """Yields each job with the policy's reply and what came of it, as they finish.

    The record is None where nothing can be said about the reply: the policy gave none
    (see `Reply.finish`), or our machinery failed.

    Args:
      jobs: steps to take; read as room becomes free.
      policy: who replies; must be idle.
      pool: who executes; must be idle.
      tasks: task id -> task.
      store: holds the workspaces of the states.
      prompt: how a state becomes a chat.
      env: the action profile; its limits are for whole trajectories.
      num_in_flight: steps under way at once.
      on_all_replied: see `StepLoop`; scripts may still run.

    Raises:
      ValueError: two jobs share an id, or policy or pool have other work pending.
    """
    loop = StepLoop(
        policy, pool, tasks, store, prompt, env.profile, on_all_replied=on_all_replied
    )
    queue = iter(jobs)
    num_active = 0
    while True:
        while num_active < num_in_flight and (job := next(queue, None)) is not None:
            loop.submit(job)
            num_active += 1
        if num_active == 0:
            return
        for done in loop.poll():
            assert isinstance(done, StepDone)
            num_active -= 1
            if done.error:
                _log.warning("step %s has no record: %s", done.job.id, done.error)
            yield done.job, done.reply, done.record


def run_trajectories(
    specs: Iterable[TrajectorySpec],
    *,
    policy: Policy,
    pool: Pool,
    tasks: Mapping[str, Task],
    store: SnapshotStore,
    prompt: PromptConfig,
    env: EnvConfig,
    num_in_flight: int,
    make_attempt: "MakeAttempt | None" = None,
    on_step: OnStep | None = None,
) -> Iterator[Trajectory]:
    """Yields whole trajectories as they finish.

    A trajectory ends when the agent submits, after its number of steps, when the time
    of its own replies and scripts exceeds `env.max_time_s` (waiting for others does
    not count), or when its prompt no longer fits. Where the policy or our machinery
    failed it is dropped, with a warning, and counted in the log.

    Args:
      specs: trajectories to run; read as room becomes free.
      policy: who replies; must be idle.
      pool: who executes; must be idle.
      tasks: task id -> task.
      store: holds the workspaces.
      prompt: how a state becomes a chat.
      env: limits of a trajectory.
      num_in_flight: trajectories under way at once.
      make_attempt: what decides where each step starts; None goes step by step.
      on_step: told of every step as it ends, for those who watch.

    Raises:
      ValueError: two specs share an id, or policy or pool have other work pending.
    """
    loop = StepLoop(policy, pool, tasks, store, prompt, env.profile)
    attempts = _Attempts(loop, policy.name, env, make_attempt or Attempt, on_step)
    queue = iter(specs)
    while True:
        while (
            attempts.num_active() < num_in_flight
            and (spec := next(queue, None)) is not None
        ):
            attempts.begin(spec)
        if attempts.num_active() == 0:
            break
        for done in loop.poll():
            trajectory = attempts.take(done)
            if trajectory is not None:
                yield trajectory
    if attempts.num_dropped:
        _log.warning("%d trajectories were dropped; see above", attempts.num_dropped)


def until_stopped(
    specs: Iterable[TrajectorySpec], stop_reason: Callable[[], str]
) -> Iterator[TrajectorySpec]:
    """Yields specs until `stop_reason` gives a text; what is under way goes on."""
    for spec in specs:
        if stop_reason():
            return
        yield spec


def check_complete(
    policy: str, num_recorded: int, num_wanted: int, stop_reason: str
) -> None:
    """Refuses to call work done that was stopped before its end.

    Raises:
      PolicyError: there are fewer trajectories than wanted, for that reason.
    """
    if num_recorded < num_wanted and stop_reason:
        raise PolicyError(
            f"{policy}: stopped with {num_recorded} of {num_wanted} trajectories "
            f"recorded: {stop_reason}. Nothing is lost; change that and run the same "
            "command again"
        )


def request_seed(seed: int, step_index: int) -> int:
    """Returns the seed of one reply: 31 bits that depend on nothing but these two."""
    digest = hashlib.sha256(f"{seed}/{step_index}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


class _Attempts:
    """All trajectories under way, and those that wait for their task's start."""

    def __init__(
        self,
        loop: StepLoop,
        policy: str,
        env: EnvConfig,
        make_attempt: "MakeAttempt",
        on_step: OnStep | None,
    ) -> None:
        self.num_dropped = 0
        self._make_attempt = make_attempt
        self._loop = loop
        self._on_step = on_step
        self._policy = policy
        self._env = env
        self._starts: dict[str, Start] = {}
        self._waiting: dict[str, list[TrajectorySpec]] = {}
        self._active: dict[str, Attempt] = {}

    def num_active(self) -> int:
        """Returns how many trajectories are under way or waiting."""
        return len(self._active) + sum(map(len, self._waiting.values()))

    def begin(self, spec: TrajectorySpec) -> None:
        """Asks for the first step of `spec`, or first for the start of its task."""
        start = self._starts.get(spec.task_id)
        if start is not None:
            attempt = self._make_attempt(spec, start, self._policy, self._env)
            self._loop.submit(attempt.next_job())
            self._active[spec.id] = attempt
        elif spec.task_id in self._waiting:
            self._waiting[spec.task_id].append(spec)
        else:
            self._waiting[spec.task_id] = [spec]
            self._loop.submit_reset(spec.task_id)

    def take(self, done: StepDone | ResetDone) -> Trajectory | None:
        """Acts on what is done; returns the trajectory that it completes, if any."""
        if isinstance(done, ResetDone):
            self._take_start(done)
            return None
        attempt = self._active[done.job.id]
        attempt.take(done)
        if self._on_step is not None and done.record is not None:
            self._on_step(done.job, done.record)
        if attempt.status is StepStatus.ONGOING:
            self._loop.submit(attempt.next_job())
            return None
        del self._active[done.job.id]
        if attempt.status is StepStatus.ENV_FAILED:
            self._drop(done.job.id, done.error)
            return None
        return attempt.trajectory()

    def _take_start(self, done: ResetDone) -> None:
        """Begins what waited for a start; a failed one costs only who asked for it."""
        specs = self._waiting.pop(done.task_id)
        if done.start is not None:
            self._starts[done.task_id] = done.start
        else:
            self._drop(specs.pop(0).id, done.error)
        for spec in specs:
            self.begin(spec)

    def _drop(self, trajectory_id: str, error: str) -> None:
        self.num_dropped += 1
        _log.warning("trajectory %s is dropped: %s", trajectory_id, error)


class Attempt:
    """A trajectory under way: each step starts where the one before ended.

    A search overrides `next_state`, `grow` and `ends`.
    """

    def __init__(
        self, spec: TrajectorySpec, start: Start, policy: str, env: EnvConfig
    ) -> None:
        self.status = StepStatus.ONGOING
        self._spec = spec
        self._start = start
        self._policy = policy
        self._max_steps = env.max_steps if spec.max_steps is None else spec.max_steps
        self._max_time_s = env.max_time_s
        self._state = start.state
        self._steps: list[StepRecord] = []
        self._start_s = time.perf_counter()
        self._usage = dict.fromkeys(
            ["prompt_tokens", "reply_tokens", "policy_s", "script_s", "env_s"], 0.0
        )

    def next_job(self) -> StepJob:
        """Returns the step to take next."""
        return StepJob(
            id=self._spec.id,
            state=self.next_state(),
            seed=request_seed(self._spec.seed, len(self._steps)),
            ideas=self._spec.ideas,
        )

    def take(self, done: StepDone) -> None:
        """Adds a step and decides whether the trajectory goes on."""
        self._count(done)
        if done.reply.finish == "prompt_too_long":
            self.status = StepStatus.TRUNCATED_TOKENS
        elif done.record is None:
            self.status = StepStatus.ENV_FAILED
        else:
            self._steps.append(done.record)
            self.grow(done.record)
            self.status = self._status_after(done.record)

    def next_state(self) -> State:
        """Returns where the next step starts."""
        return self._state

    def grow(self, record: StepRecord) -> None:
        """Takes in the step that started at the last `next_state`."""
        self._state = advance(self._state, record)

    def ends(self, record: StepRecord) -> StepStatus:
        """Returns ONGOING, or why the agent's own step is the last."""
        return record.status

    def trajectory(self) -> Trajectory:
        """Returns the finished trajectory; its last step bears the same status."""
        steps = list(self._steps)
        if steps:
            steps[-1] = dataclasses.replace(steps[-1], status=self.status)
        state = self._start.state
        return Trajectory(
            id=self._spec.id,
            task_id=state.task_id,
            task_version=state.task_version,
            policy=self._policy,
            seed=self._spec.seed,
            ideas=self._spec.ideas,
            start_snapshot=state.snapshot,
            start_score=state.score,
            start_submission=self._start.submission,
            steps=tuple(steps),
            status=self.status,
            usage={**self._usage, "wall_s": time.perf_counter() - self._start_s},
        )

    def _status_after(self, record: StepRecord) -> StepStatus:
        status = self.ends(record)
        if status is not StepStatus.ONGOING:
            return status
        if len(self._steps) >= self._max_steps:
            return StepStatus.TRUNCATED_STEPS
        used_s = sum(self._usage[name] for name in ("policy_s", "script_s", "env_s"))
        if used_s > self._max_time_s:
            return StepStatus.TRUNCATED_TIME
        return StepStatus.ONGOING

    def _count(self, done: StepDone) -> None:
        """Adds the cost of a step to the counters."""
        reply, record = done.reply, done.record
        costs = {
            "prompt_tokens": float(len(reply.prompt_tokens)),
            "reply_tokens": float(len(reply.tokens)),
            "policy_s": reply.seconds,
            **reply.usage,
        }
        if record is not None:
            costs["env_s"] = record.env_s
            if record.execution is not None:
                costs["script_s"] = record.execution.wall_s
        for name, cost in costs.items():
            self._usage[name] = self._usage.get(name, 0.0) + cost


MakeAttempt = Callable[[TrajectorySpec, Start, str, EnvConfig], Attempt]
