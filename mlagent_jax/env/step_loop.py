"""Single steps, many at once: from a state to a prompt, a reply and a record.

One thread moves three queues: states that wait for a prompt, requests that wait for
the policy, replies that wait for a worker. While some scripts run, other replies are
sampled. `env.runner` builds whole trajectories and batches of steps on top.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from mlagent_jax.config import PromptConfig
from mlagent_jax.env.environment import Start
from mlagent_jax.env.pool_jobs import JobResult
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.policy.base import Policy, Reply, Request
from mlagent_jax.text.profiles import get_profile
from mlagent_jax.types import (
    EditorCall,
    Message,
    ProfileName,
    State,
    StepRecord,
    Task,
)

# A policy whose `poll` comes back this fast did no work in it: wait a little.
_FAST_POLL_S = 1e-3
_POLICY_WAIT_S = 5e-3
_POOL_WAIT_S = 1.0


class Pool(Protocol):
    """What the loop needs of `env.worker_pool.WorkerPool`."""

    def submit(
        self, job_id: str, state: State, reply: str, edit: EditorCall | None = None
    ) -> None:
        """Queues one step."""
        ...

    def submit_reset(self, job_id: str, task_id: str) -> None:
        """Queues one reset."""
        ...

    def poll(self, timeout_s: float) -> list[JobResult]:
        """Returns what is done."""
        ...

    def num_pending(self) -> int:
        """Returns how many jobs are not."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepJob:
    """A single step to be taken.

    Attributes:
      id: unique among the jobs of one call.
      state: where it starts.
      seed: determines the policy's choice.
      ideas: idea texts for the prompt, empty for none.
      has_siblings: whether several jobs start in this very state.
    """

    id: str
    state: State
    seed: int
    ideas: tuple[str, ...] = ()
    has_siblings: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepDone:
    """A finished step; `error` says why there is no record."""

    job: StepJob
    reply: Reply
    record: StepRecord | None
    error: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResetDone:
    """A finished reset; `error` says why there is no start."""

    task_id: str
    start: Start | None
    error: str


class StepLoop:
    """Moves steps from prompt to record, in whatever order they get ready."""

    def __init__(
        self,
        policy: Policy,
        pool: Pool,
        tasks: Mapping[str, Task],
        store: SnapshotStore,
        prompt: PromptConfig,
        profile: ProfileName = "direct",
        on_all_replied: Callable[[], None] | None = None,
    ) -> None:
        """Makes a loop around an idle policy and an idle pool.

        Args:
          policy: who replies.
          pool: who executes.
          tasks: task id -> task.
          store: holds the workspaces of the states.
          prompt: how a state becomes a chat.
          profile: of the actions.
          on_all_replied: called whenever the policy has just answered all it was
            asked and the workers have got it, before anybody waits for them.

        Raises:
          ValueError: one of them has other work pending.
        """
        if policy.num_pending() or pool.num_pending():
            raise ValueError(
                f"policy ({policy.num_pending()} pending) and pool "
                f"({pool.num_pending()} pending) must be idle; read an earlier "
                "iterator to its end, or close them"
            )
        self._policy = policy
        self._pool = pool
        self._tasks = tasks
        self._store = store
        self._prompt = prompt
        self._profile = get_profile(profile)
        self._on_all_replied = on_all_replied
        self._jobs: dict[str, StepJob] = {}
        self._replies: dict[str, Reply] = {}
        self._resets: dict[str, str] = {}

    def submit(self, job: StepJob) -> None:
        """Asks the policy for the reply of `job`.

        Raises:
          ValueError: another job of the same id is under way.
        """
        if job.id in self._jobs:
            raise ValueError(f"two jobs share the id {job.id!r}")
        self._jobs[job.id] = job
        task = self._tasks[job.state.task_id]
        shown = self._profile.window_snapshot(job.state, self._prompt)
        messages = self._profile.render_state(
            task, job.state, self._script(task, shown), self._prompt, job.ideas
        )
        self._policy.submit(
            Request(
                id=job.id,
                messages=messages,
                seed=job.seed,
                num_shared_turns=self._num_shared_turns(job, messages),
                task_id=task.id,
                script=self._script(task, job.state.snapshot),
            )
        )

    def _num_shared_turns(self, job: StepJob, messages: Sequence[Message]) -> int:
        """Returns how many turns of its prompt other jobs are likely to start with."""
        if job.has_siblings:
            return len(messages)
        shown = self._profile.history_steps(self._prompt)
        # The user turn tells of steps that are no turns of their own.
        is_whole = shown is None or len(job.state.steps) <= shown
        return 2 if is_whole else 1

    def submit_reset(self, task_id: str) -> None:
        """Asks the pool for the start of `task_id`."""
        job_id = f"reset/{task_id}"
        self._resets[job_id] = task_id
        self._pool.submit_reset(job_id, task_id)

    def poll(self) -> list[StepDone | ResetDone]:
        """Makes progress; returns what is finished, maybe nothing."""
        start_s = time.perf_counter()
        replies = self._policy.poll() if self._policy.num_pending() else []
        is_idle = not replies and time.perf_counter() - start_s < _FAST_POLL_S
        done: list[StepDone | ResetDone] = [
            end for reply in replies for end in self._take_reply(reply)
        ]
        if replies and not self._policy.num_pending() and self._on_all_replied:
            self._on_all_replied()
        if not self._policy.num_pending():
            wait_s = 0.0 if done else _POOL_WAIT_S
        else:
            wait_s = _POLICY_WAIT_S if is_idle else 0.0
        if self._pool.num_pending():
            done += [self._take_result(result) for result in self._pool.poll(wait_s)]
        elif is_idle and self._policy.num_pending():
            time.sleep(wait_s)
        return done

    def _take_reply(self, reply: Reply) -> Iterator[StepDone]:
        """Sends `reply` to the pool, or yields the step that ends without a record."""
        job = self._jobs[reply.request_id]
        if not reply.is_answer:
            del self._jobs[job.id]
            error = reply.error or reply.finish
            yield StepDone(job=job, reply=reply, record=None, error=error)
            return
        self._replies[job.id] = reply
        self._pool.submit(f"step/{job.id}", job.state, reply.text)

    def _take_result(self, result: JobResult) -> StepDone | ResetDone:
        if result.job_id in self._resets:
            task_id = self._resets.pop(result.job_id)
            start = result.value if isinstance(result.value, Start) else None
            return ResetDone(task_id=task_id, start=start, error=result.error)
        job_id = result.job_id.removeprefix("step/")
        record = result.value if isinstance(result.value, StepRecord) else None
        return StepDone(
            job=self._jobs.pop(job_id),
            reply=self._replies.pop(job_id),
            record=record,
            error=result.error,
        )

    def _script(self, task: Task, snapshot: str) -> str:
        """Returns the entry script of `snapshot`, "" if a script has removed it."""
        blob_id = self._store.manifest(snapshot).get(task.entry_script)
        if blob_id is None:
            return ""
        return self._store.get_blob(blob_id).decode(errors="replace")
