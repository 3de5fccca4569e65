"""Worker processes that carry out actions side by side, and outlive their deaths.

Each worker is a fresh interpreter with its own `Environment`; it talks to the parent
over one pipe. The workers are started by `subprocess`, not by `multiprocessing`: its
spawn method imports the parent's main program in every child, and the programs of
`launch/` import jax, which a process beside a TPU must never do.

A worker that dies or hangs is replaced and its job tried once more; after that the
job's result is an error and the caller drops the sample. An exception that is no
`MlAgentError` is a bug: it is raised in the parent with the worker's traceback.
"""

import collections
import dataclasses
import logging
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlagent_jax import errors
from mlagent_jax.config import EnvConfig
from mlagent_jax.env.environment import Start
from mlagent_jax.env.worker import EnvironmentFactory, make_environment
from mlagent_jax.errors import EnvUnavailableError, MlAgentError
from mlagent_jax.types import EditorCall, State, StepRecord, Task

_log = logging.getLogger(__name__)

MAX_ATTEMPTS = 2
_HANG_GRACE_S = 180.0  # on top of twice the script's limit: retries, a new sandbox
_CHECK_S = 0.2  # how often deaths are looked for while waiting
_KILL_S = 10.0
_CLOSE_S = 5.0  # how long a worker may take to clean up


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
    """A submitted job: `arguments` are those of the environment's `method`."""

    id: str
    number: int
    method: str
    arguments: tuple[Any, ...]
    limit_s: float
    num_attempts: int = 0


@dataclasses.dataclass(kw_only=True)
class _Worker:
    """A child process, our end of its pipe, and what it is busy with."""

    process: "subprocess.Popen[bytes]"
    connection: "Connection[Any, Any]"
    is_ready: bool = False
    job: Job | None = None
    job_start_s: float = 0.0


class WorkerPool:
    """`cfg.num_workers` environments in processes of their own.

    Used from one thread, and as a context manager so that no process stays behind.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        store_root: Path,
        cfg: EnvConfig,
        *,
        make: EnvironmentFactory = make_environment,
    ) -> None:
        """Starts the workers; returns before they are ready.

        Args:
          tasks: task id -> task.
          store_root: folder of the snapshot store that the workers share.
          cfg: number of workers and settings of their environments.
          make: importable function that a worker calls for its environment.
        """
        self._setup = (make, dict(tasks), store_root, cfg)
        self._tasks = tasks
        self._queue: collections.deque[Job] = collections.deque()
        self._failed: list[tuple[Job, JobResult]] = []
        self._ids: set[str] = set()
        self._num_submitted = 0
        self._num_deaths_in_a_row = 0
        self._workers = [_start_worker() for _ in range(cfg.num_workers)]

    def submit(
        self, job_id: str, state: State, reply: str, edit: EditorCall | None = None
    ) -> None:
        """Queues `Environment.step(state, reply, edit)`."""
        self._submit(job_id, "step", (state, reply, edit), state.task_id)

    def submit_reset(self, job_id: str, task_id: str) -> None:
        """Queues `Environment.reset(task_id)`."""
        self._submit(job_id, "reset", (task_id,), task_id)

    def poll(self, timeout_s: float) -> list[JobResult]:
        """Returns jobs that are done, in the order of their submission.

        Returns as soon as there is one, at once if no job is pending, and with an
        empty list after `timeout_s` seconds.

        Raises:
          EnvUnavailableError: workers die one after the other without finishing
            any job.
          MlAgentError: a worker met a fault of the user, e.g. a damaged file.
          RuntimeError: a worker met a bug; the text has its traceback. As after a
            fault of the user, the job at fault is no longer pending.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._dispatch()
            remaining_s = deadline_s - time.monotonic()
            done = self._collect(min(max(remaining_s, 0.0), _CHECK_S))
            done, self._failed = [*done, *self._failed], []
            if done:
                self._dispatch()
                done.sort(key=lambda pair: pair[0].number)
                self._ids -= {job.id for job, _ in done}
                return [result for _, result in done]
            if not self._ids or remaining_s <= 0:
                return []

    def num_pending(self) -> int:
        """Returns how many submitted jobs `poll` has not returned yet."""
        return len(self._ids)

    def worker_pids(self) -> list[int]:
        """Returns the process ids of the workers alive."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """Ends all workers; pending jobs are lost. May be called twice."""
        workers, self._workers = self._workers, []
        self._queue.clear()
        self._ids.clear()
        for worker in workers:
            if worker.job is not None:
                worker.process.terminate()
            # Closing our end is the request to clean up and leave.
            worker.connection.close()
        deadline_s = time.monotonic() + _CLOSE_S
        for worker in workers:
            try:
                worker.process.wait(max(deadline_s - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                _kill(worker)

    def __enter__(self) -> Self:
        """Returns the pool itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the pool."""
        self.close()

    def _submit(
        self, job_id: str, method: str, arguments: tuple[Any, ...], task_id: str
    ) -> None:
        if job_id in self._ids:
            raise ValueError(f"job {job_id!r} is pending already; use another id")
        self._ids.add(job_id)
        self._queue.append(
            Job(
                id=job_id,
                number=self._num_submitted,
                method=method,
                arguments=arguments,
                limit_s=job_limit_s(self._tasks.get(task_id)),
            )
        )
        self._num_submitted += 1

    def _dispatch(self) -> None:
        """Gives queued jobs to idle workers."""
        for worker in list(self._workers):
            if not self._queue:
                return
            if not worker.is_ready or worker.job is not None:
                continue
            worker.job = self._queue.popleft()
            worker.job.num_attempts += 1
            worker.job_start_s = time.monotonic()
            try:
                worker.connection.send((worker.job.method, worker.job.arguments))
            except OSError:
                self._replace(worker, "died before it took the job")

    def _collect(self, timeout_s: float) -> list[tuple[Job, JobResult]]:
        """Returns what arrived within `timeout_s`, and replaces dead workers."""
        by_connection = {worker.connection: worker for worker in self._workers}
        ready = set(wait(list(by_connection), timeout_s))
        done: list[tuple[Job, JobResult]] = []
        for connection, worker in by_connection.items():
            if connection in ready or connection.poll():
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    self._replace(worker, "died")
                    continue
                done += self._handle(worker, message)
            elif worker.process.poll() is not None:
                self._replace(worker, "died")
            elif (
                worker.job is not None
                and time.monotonic() - worker.job_start_s > worker.job.limit_s
            ):
                self._replace(worker, f"hung for {worker.job.limit_s:.0f} s")
        return done

    def _handle(
        self, worker: _Worker, message: tuple[Any, ...]
    ) -> list[tuple[Job, JobResult]]:
        """Acts on what a worker sent; returns the job it finished, if any.

        Raises:
          MlAgentError: the worker met a fault of the user.
          RuntimeError: the worker met a bug.
        """
        match message:
            case ("started",):
                worker.is_ready = True
                try:
                    worker.connection.send(self._setup)
                except OSError:
                    self._replace(worker, "died at its start")
                return []
            case ("done", value, error, seconds):
                job, worker.job = worker.job, None
                assert job is not None, "a worker answered without a job"
                self._num_deaths_in_a_row = 0
                result = JobResult(
                    job_id=job.id, value=value, error=error, seconds=seconds
                )
                return [(job, result)]
            case ("raised", name, text):
                if worker.job is not None:
                    self._ids.discard(worker.job.id)
                    worker.job = None
                error = rebuild_error(name, text)
                raise error
            case _:
                raise RuntimeError(f"unknown message from a worker: {message!r:.80}")

    def _replace(self, worker: _Worker, what: str) -> None:
        """Ends `worker`, starts another, and decides what becomes of its job.

        Raises:
          EnvUnavailableError: too many workers died one after the other.
        """
        _kill(worker)
        worker.connection.close()
        self._workers.remove(worker)
        job = worker.job
        cause = f"{what} (exit status {worker.process.returncode})"
        _log.warning(
            "environment worker %d %s%s",
            worker.process.pid,
            cause,
            "" if job is None else f" at job {job.id}, attempt {job.num_attempts}",
        )
        if job is not None and job.num_attempts < MAX_ATTEMPTS:
            self._queue.appendleft(job)
        elif job is not None:
            error = f"the worker {cause}, {job.num_attempts} times"
            seconds = time.monotonic() - worker.job_start_s
            result = JobResult(job_id=job.id, value=None, error=error, seconds=seconds)
            self._failed.append((job, result))
        self._num_deaths_in_a_row += 1
        num_allowed = 3 + 2 * self._setup[3].num_workers
        if self._num_deaths_in_a_row > num_allowed:
            raise EnvUnavailableError(
                f"{self._num_deaths_in_a_row} environment workers in a row {cause}; "
                "see their messages above; is there enough memory and disk?"
            )
        self._workers.append(_start_worker())


def job_limit_s(task: Task | None) -> float:
    """Returns after how many seconds a worker at a job of `task` counts as hanging."""
    wall_s = 0.0 if task is None else task.limits.wall_s
    return 2 * wall_s + _HANG_GRACE_S


def _start_worker() -> _Worker:
    ours, theirs = Pipe()
    program = (
        "import sys; sys.path[:] = {path!r}; "
        "from mlagent_jax.env.worker import run_worker; run_worker({descriptor})"
    )
    with theirs:
        descriptor = theirs.fileno()
        process = subprocess.Popen(
            _command(program.format(path=sys.path, descriptor=descriptor)),
            stdin=subprocess.DEVNULL,
            pass_fds=[descriptor],
        )
    return _Worker(process=process, connection=ours)


def _command(program: str) -> Sequence[str]:
    return [sys.executable, "-c", program]


def _kill(worker: _Worker) -> None:
    """Kills a worker; one that hangs inside the kernel is left to end by itself."""
    worker.process.kill()
    try:
        worker.process.wait(_KILL_S)
    except subprocess.TimeoutExpired:  # e.g. a read from a dead network disk
        _log.warning("environment worker %d cannot be killed now", worker.process.pid)


def rebuild_error(name: str, text: str) -> Exception:
    """Returns the error that a worker met, from its type's name and its text."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, MlAgentError):
        return kind(text)
    return RuntimeError(f"a bug in an environment worker:\n{text}")
