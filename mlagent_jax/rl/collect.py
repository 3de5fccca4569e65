"""Makes one rollout on the host: states -> replies -> steps -> rewards.

In mode "step" each sample is one action from one state of the pool (paper A.5); in
mode "episode" it is a whole attempt from the start of a task. Replies go to CPU workers
as they finish while the sampler goes on (`env.runner.run_steps`); the result is in the
order of the states and does not depend on what finished when. When the last reply is
there, the learner may score all of them while scripts still run (`on_sampled`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Protocol

from mlagent_jax.config import RunConfig
from mlagent_jax.data.state_pool import PoolState
from mlagent_jax.env.advance import advance
from mlagent_jax.env.grading import grade
from mlagent_jax.env.pool_jobs import JobResult
from mlagent_jax.env.reward import compute_reward
from mlagent_jax.env.runner import StepJob, run_steps
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.step_loop import Pool
from mlagent_jax.errors import EnvUnavailableError
from mlagent_jax.parallel import hosts
from mlagent_jax.policy.base import Policy, Reply, Request
from mlagent_jax.rl.rollout import (
    DroppedSample,
    OnSampled,
    Rollout,
    Sample,
    derive_seed,
    reply_tokens,
)
from mlagent_jax.rl.timeline import EXECUTION, SAMPLING, Timeline
from mlagent_jax.train.stopping import StopSignal
from mlagent_jax.types import EditorCall, State, StepRecord, StepStatus, Task

Rows = list[Sample | DroppedSample | None]


class States(Protocol):
    """What a rollout needs of a pool, see `data.state_pool.StatePool`."""

    def sample(self, seed: int, n: int) -> list[PoolState]:
        """Returns `n` states."""
        ...

    def sample_starts(self, seed: int, n: int) -> list[PoolState]:
        """Returns `n` states before a first step."""
        ...


def collect_rollout(
    update: int,
    *,
    config: RunConfig,
    policy: Policy,
    workers: Pool,
    states: States,
    tasks: Mapping[str, Task],
    store: SnapshotStore,
    stop: StopSignal | None = None,
    timeline: Timeline | None = None,
    on_sampled: OnSampled | None = None,
) -> Rollout:
    """Returns the samples of update number `update`.

    States and seeds follow from (config.seed, update), so the same policy gives the
    same rollout again. Several hosts share the samples out; each makes its own
    without a word to the others, then all exchange them.

    Args:
      update: index of the update, from 0.
      config: its `ppo`, `prompt` and `env` sections are used.
      policy: whose replies are sampled; must report tokens and log-probabilities.
      workers: execute the actions.
      states: pool to draw from.
      tasks: task id -> task.
      store: snapshots of the states.
      stop: cuts the rollout short; None for never.
      timeline: gets what the policy and the workers did when.
      on_sampled: called in mode "step" on one host, once every reply is there and
        before the last script has ended.

    Raises:
      EnvUnavailableError: no sample of the rollout survived.
      RunInterruptedError: `stop` was set on some host.
    """
    start, stop = monotonic(), stop or StopSignal()
    timeline = Timeline() if timeline is None else timeline
    timed_policy = _TimedPolicy(policy, timeline)
    timed_workers = _TimedPool(workers, timeline)
    stepper = _Stepper(config, timed_policy, timed_workers, tasks, store, stop)
    cfg, seed = config.ppo, derive_seed(config.seed, update)
    if cfg.mode == "step":
        drawn = states.sample(seed, cfg.states_per_update)
    else:
        drawn = states.sample_starts(seed, cfg.states_per_update)
    drawn = [s for s in drawn for _ in range(cfg.samples_per_state)]
    if cfg.mode == "step":
        rows: Rows = [*stepper.take_steps(update, drawn, on_sampled=on_sampled)]
    else:
        rows = _play_episodes(update, drawn, stepper, config)
    rollout = Rollout(
        update=update,
        samples=tuple(rows),
        rollout_s=monotonic() - start,
        sample_s=timed_policy.busy_s,
    )
    if not rollout.kept():
        raise EnvUnavailableError(
            f"update {update}: all {len(drawn)} samples were dropped: "
            f"{dict(rollout.dropped())}"
        )
    return rollout


def _play_episodes(
    update: int, starts: Sequence[PoolState], stepper: "_Stepper", config: RunConfig
) -> Rows:
    """Returns the rows of every episode: its steps, then None up to the most.

    Episodes move in lockstep, so that which requests share a decode batch follows
    from the seed alone. One that our own fault cuts short is dropped whole: the
    rewards that it did not live to see must not count against its first steps.
    """
    num_steps = config.ppo.episode_steps
    now = dict(enumerate(starts))
    rows: dict[int, list[Sample | DroppedSample]] = {i: [] for i in now}
    used_s = dict.fromkeys(now, 0.0)
    for step in range(num_steps):
        taken = stepper.take_steps(f"{update}/{step}", list(now.values()), list(now))
        for i, sample in zip(list(now), taken, strict=True):
            state = now.pop(i)
            if isinstance(sample, DroppedSample):
                if sample.reason != "prompt_too_long" or not rows[i]:
                    rows[i] = [sample]
                continue
            rows[i].append(sample)
            execution = sample.step.execution
            used_s[i] += 0.0 if execution is None else execution.wall_s
            is_over = sample.step.status is not StepStatus.ONGOING
            if not is_over and used_s[i] <= config.env.max_time_s:
                now[i] = dataclasses.replace(
                    state,
                    id=f"{starts[i].id}+{step + 1}",
                    state=advance(state.state, sample.step),
                )
        now = dict(sorted(now.items()))
    return [
        row
        for steps in rows.values()
        for row in [*steps, *[None] * (num_steps - len(steps))]
    ]


class _Stepper:
    """Takes one step from each of many states."""

    def __init__(
        self,
        config: RunConfig,
        policy: "_TimedPolicy",
        workers: Pool,
        tasks: Mapping[str, Task],
        store: SnapshotStore,
        stop: StopSignal,
    ) -> None:
        self._stop = stop
        self._config = config
        self._policy = policy
        self._workers = workers
        self._tasks = tasks
        self._store = store

    def take_steps(
        self,
        seed_part: int | str,
        states: Sequence[PoolState],
        numbers: Sequence[int] | None = None,
        on_sampled: OnSampled | None = None,
    ) -> list[Sample | DroppedSample]:
        """Returns one sample a state.

        Args:
          seed_part: what seeds of other calls do not have in common.
          states: where to start.
          numbers: one a state, for seeds; by default their places.
          on_sampled: gets the tokens of all replies, see `collect_rollout`.

        Raises:
          RunInterruptedError: the run was asked to end on some host.
        """
        numbers = range(len(states)) if numbers is None else numbers
        cfg = self._config.ppo
        jobs = [
            StepJob(
                id=f"{seed_part}/{number:05d}",
                state=pool_state.state,
                seed=derive_seed(self._config.seed, seed_part, number),
                has_siblings=cfg.mode == "step" and cfg.samples_per_state > 1,
            )
            for number, pool_state in zip(numbers, states, strict=True)
        ]

        def all_replied() -> None:
            # Other hosts cannot be asked for their replies from within `take_mine`.
            if on_sampled is not None and hosts.is_only():
                replies = [self._policy.replies[job.id] for job in jobs]
                on_sampled([reply_tokens(reply) for reply in replies])

        def take_mine() -> dict[str, tuple[Reply, StepRecord | None]]:
            steps = run_steps(
                hosts.mine(jobs),
                policy=self._policy,
                pool=self._workers,
                tasks=self._tasks,
                store=self._store,
                prompt=self._config.prompt,
                env=self._config.env,
                # All at once: which requests share a decode batch must not depend on
                # when earlier actions happened to finish.
                num_in_flight=len(jobs),
                on_all_replied=all_replied,
            )
            return {job.id: (reply, step) for job, reply, step in steps}

        answers: dict[str, tuple[Reply, StepRecord | None]] = {}
        for part in hosts.gather(self._stop.interruptible(take_mine)):
            if part is None:
                raise self._stop.error(f"in the rollout of {seed_part}")
            answers |= part
        return [
            self._make_sample(pool_state, *answers[job.id])
            for job, pool_state in zip(jobs, states, strict=True)
        ]

    def _make_sample(
        self, pool_state: PoolState, reply: Reply, step: StepRecord | None
    ) -> Sample | DroppedSample:
        if step is None:
            reasons = {"error": "policy_error", "prompt_too_long": "prompt_too_long"}
            reason = reasons.get(reply.finish, "env_failed")
            return DroppedSample(state_id=pool_state.id, reason=reason)
        cfg, task = self._config.ppo, pool_state.task
        test_score = None
        if cfg.reward.gap_weight > 0 and step.submission is not None:
            # The one place where a test part is read in training, see `RewardConfig`.
            assert task.split == "held_in", task.id
            test_score = grade(task, self._store.get_blob(step.submission), "test")
        script_s = 0.0 if step.execution is None else step.execution.wall_s
        return Sample(
            state_id=pool_state.id,
            task=task,
            reply=reply,
            step=step,
            reward=compute_reward(
                pool_state.state, step, task, cfg.reward, test_score=test_score
            ),
            state=pool_state.state,
            duration_s=cfg.duration_base_s + script_s,
        )


class _TimedPolicy:
    """A policy that counts the seconds it spends computing, and keeps its replies."""

    def __init__(self, policy: Policy, timeline: Timeline) -> None:
        self.name = policy.name
        self.busy_s = 0.0
        self.replies: dict[str, Reply] = {}
        self._policy = policy
        self._timeline = timeline

    def submit(self, request: Request) -> None:
        self._policy.submit(request)

    def poll(self) -> list[Reply]:
        start = monotonic()
        replies = self._policy.poll()
        end = monotonic()
        self.busy_s += end - start
        self.replies |= {reply.request_id: reply for reply in replies}
        self._timeline.add(SAMPLING, f"{len(replies)} replies", start, end)
        return replies

    def num_pending(self) -> int:
        return self._policy.num_pending()

    def close(self) -> None:
        self._policy.close()


class _TimedPool:
    """A pool that records its executions, as long as a worker was at them."""

    def __init__(self, pool: Pool, timeline: Timeline) -> None:
        self._pool = pool
        self._timeline = timeline

    def submit(
        self, job_id: str, state: State, reply: str, edit: EditorCall | None = None
    ) -> None:
        self._pool.submit(job_id, state, reply, edit)

    def submit_reset(self, job_id: str, task_id: str) -> None:
        self._pool.submit_reset(job_id, task_id)

    def poll(self, timeout_s: float) -> list[JobResult]:
        results = self._pool.poll(timeout_s)
        end = monotonic()
        for result in results:
            if isinstance(result.value, StepRecord):
                start = end - result.seconds
                self._timeline.add(EXECUTION, result.value.outcome, start, end)
        return results

    def num_pending(self) -> int:
        return self._pool.num_pending()
