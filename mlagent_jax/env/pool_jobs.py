"""The jobs of a worker pool: who waits, what is done, and which are tried again.

`env.worker_pool` and `env.ray_pool` know how to start workers, talk to them and notice
their deaths; what becomes of the jobs is the same for both and decided here.
"""

import collections
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from mlagent_jax import errors
from mlagent_jax.env.environment import Start
from mlagent_jax.errors import MlAgentError
from mlagent_jax.types import EditorCall, State, StepRecord, Task

_log = logging.getLogger(__name__)

_MAX_ATTEMPTS = 2
_HANG_GRACE_S = 180.0  # on top of twice the script's limit: retries, a new sandbox


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobResult:
    """The end of one job.

    Attributes:
      job_id: as submitted.
      value: what the environment returned, None after an error.
      error: why there is no value, "" if there is one.
      seconds: the worker's time for the job.
    """

    job_id: str
    value: StepRecord | Start | None
    error: str
    seconds: float


@dataclasses.dataclass(kw_only=True)
class Job:
    """A submitted job.

    Attributes:
      id: as submitted.
      number: how many were submitted before it.
      method: name of the environment's method to call.
      arguments: those of the call.
      limit_s: seconds after which a worker at it counts as hanging.
      num_attempts: how often a worker has taken it.
      start_s: monotonic time at which a worker last took it.
    """

    id: str
    number: int
    method: str
    arguments: tuple[Any, ...]
    limit_s: float
    num_attempts: int = 0
    start_s: float = 0.0

    def seconds(self) -> float:
        """Returns for how long its last worker has had it."""
        return time.monotonic() - self.start_s


class PoolJobs:
    """All jobs that a pool was given and has not returned yet.

    Attributes:
      num_losses_in_a_row: workers lost since a job was last done.
    """

    def __init__(self, tasks: Mapping[str, Task], num_workers: int) -> None:
        """Starts without jobs.

        Args:
          tasks: task id -> task; their limits say when a worker hangs.
          num_workers: size of the pool; bounds how many losses are borne.
        """
        self.num_losses_in_a_row = 0
        self._tasks = tasks
        self._max_losses = 3 + 2 * num_workers
        self._queue: collections.deque[Job] = collections.deque()
        self._done: list[tuple[Job, JobResult]] = []
        self._ids: set[str] = set()
        self._num_submitted = 0

    def submit(
        self, job_id: str, state: State, reply: str, edit: EditorCall | None
    ) -> None:
        """Queues `Environment.step(state, reply, edit)`.

        Raises:
          ValueError: a job of this id is pending.
        """
        self._submit(job_id, "step", (state, reply, edit), state.task_id)

    def submit_reset(self, job_id: str, task_id: str) -> None:
        """Queues `Environment.reset(task_id)`.

        Raises:
          ValueError: a job of this id is pending.
        """
        self._submit(job_id, "reset", (task_id,), task_id)

    def num_pending(self) -> int:
        """Returns how many submitted jobs `wait` has not returned yet."""
        return len(self._ids)

    def clear(self) -> None:
        """Forgets all jobs."""
        self._queue.clear()
        self._done.clear()
        self._ids.clear()

    def wait(
        self,
        timeout_s: float,
        *,
        dispatch: Callable[[], None],
        collect: Callable[[float], None],
    ) -> list[JobResult]:
        """Returns jobs that are done, in the order of their submission.

        Returns as soon as there is one, at once if no job is pending, and with an
        empty list after `timeout_s` seconds. What the two functions raise is raised.

        Args:
          timeout_s: how long to wait.
          dispatch: gives waiting jobs (`take`) to idle workers.
          collect: waits at most so many seconds for workers and reports what they
            sent (`answer`) and which were lost (`lose`).
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            dispatch()
            remaining_s = deadline_s - time.monotonic()
            collect(max(remaining_s, 0.0))
            if self._done:
                dispatch()
                done, self._done = self._done, []
                done.sort(key=lambda pair: pair[0].number)
                self._ids -= {job.id for job, _ in done}
                return [result for _, result in done]
            if not self._ids or remaining_s <= 0:
                return []

    def take(self) -> Job | None:
        """Returns the next job for a worker, None if none waits."""
        if not self._queue:
            return None
        job = self._queue.popleft()
        job.num_attempts += 1
        job.start_s = time.monotonic()
        return job

    def answer(self, job: Job | None, message: tuple[Any, ...]) -> None:
        """Notes what a worker answered, see `env.worker`.

        Args:
          job: what the worker was busy with, if anything.
          message: its answer.

        Raises:
          MlAgentError: the worker met a fault of the user.
          RuntimeError: the worker met a bug.
        """
        match message:
            case ("done", value, error, seconds):
                assert job is not None, "a worker answered without a job"
                self.num_losses_in_a_row = 0
                self._finish(job, value, error, seconds)
            case ("raised", name, text):
                if job is not None:
                    self._ids.discard(job.id)
                error = _rebuild_error(name, text)
                raise error
            case _:
                raise RuntimeError(f"unknown message from a worker: {message!r:.80}")

    def lose(self, job: Job | None, who: str, cause: str) -> None:
        """Notes that a worker was lost; its job waits again or ends in an error.

        Args:
          job: what the worker was busy with, if anything.
          who: the worker's name for the log.
          cause: what became of it, e.g. "died (exit status -9)".
        """
        where = "" if job is None else f" at job {job.id}, attempt {job.num_attempts}"
        _log.warning("%s %s%s", who, cause, where)
        self.num_losses_in_a_row += 1
        if job is None:
            return
        if job.num_attempts < _MAX_ATTEMPTS:
            self._queue.appendleft(job)
            return
        error = f"the worker {cause}, {job.num_attempts} times"
        self._finish(job, None, error, job.seconds())

    def is_hopeless(self) -> bool:
        """Returns whether too many workers were lost one after the other."""
        return self.num_losses_in_a_row > self._max_losses

    def _finish(
        self, job: Job, value: StepRecord | Start | None, error: str, seconds: float
    ) -> None:
        result = JobResult(job_id=job.id, value=value, error=error, seconds=seconds)
        self._done.append((job, result))

    def _submit(
        self, job_id: str, method: str, arguments: tuple[Any, ...], task_id: str
    ) -> None:
        if job_id in self._ids:
            raise ValueError(f"job {job_id!r} is pending already; use another id")
        self._ids.add(job_id)
        task = self._tasks.get(task_id)
        wall_s = 0.0 if task is None else task.limits.wall_s
        self._queue.append(
            Job(
                id=job_id,
                number=self._num_submitted,
                method=method,
                arguments=arguments,
                limit_s=2 * wall_s + _HANG_GRACE_S,
            )
        )
        self._num_submitted += 1


def _rebuild_error(name: str, text: str) -> Exception:
    """Returns the error that a worker met, from its type's name and its text."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, MlAgentError):
        return kind(text)
    return RuntimeError(f"a bug in an environment worker:\n{text}")
