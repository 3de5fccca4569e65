"""Worker processes that carry out actions side by side, and outlive their deaths.

Each worker is a fresh interpreter with its own `Environment`; it talks to the parent
over one pipe. The workers are started by `subprocess`, not by `multiprocessing`: its
spawn method imports the parent's main program in every child, and the programs of
`launch/` import jax, which a process beside a TPU must never do.

A worker that dies or hangs is replaced and its job tried once more; after that the
job's result is an error and the caller drops the sample. An exception that is no
`MlAgentError` is a bug: it is raised in the parent with the worker's traceback.
"""

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

from mlagent_jax.config import EnvConfig
from mlagent_jax.env.pool_jobs import Job, JobResult, PoolJobs
from mlagent_jax.env.worker import EnvironmentFactory, make_environment
from mlagent_jax.errors import EnvUnavailableError
from mlagent_jax.types import EditorCall, State, Task

_log = logging.getLogger(__name__)

_CHECK_S = 0.2  # how often deaths are looked for while waiting
_KILL_S = 10.0
_CLOSE_S = 5.0  # how long a worker may take to clean up


@dataclasses.dataclass(kw_only=True)
class _Worker:
    """A child process, our end of its pipe, and what it is busy with."""

    process: "subprocess.Popen[bytes]"
    connection: "Connection[Any, Any]"
    is_ready: bool = False
    job: Job | None = None


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
        self._jobs = PoolJobs(tasks, cfg.num_workers)
        self._workers = [_start_worker() for _ in range(cfg.num_workers)]

    def submit(
        self, job_id: str, state: State, reply: str, edit: EditorCall | None = None
    ) -> None:
        """Queues `Environment.step(state, reply, edit)`."""
        self._jobs.submit(job_id, state, reply, edit)

    def submit_reset(self, job_id: str, task_id: str) -> None:
        """Queues `Environment.reset(task_id)`."""
        self._jobs.submit_reset(job_id, task_id)

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
        return self._jobs.wait(
            timeout_s, dispatch=self._dispatch, collect=self._collect
        )

    def num_pending(self) -> int:
        """Returns how many submitted jobs `poll` has not returned yet."""
        return self._jobs.num_pending()

    def worker_pids(self) -> list[int]:
        """Returns the process ids of the workers alive."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """Ends all workers; pending jobs are lost. May be called twice."""
        workers, self._workers = self._workers, []
        self._jobs.clear()
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

    def _dispatch(self) -> None:
        """Gives waiting jobs to idle workers."""
        for worker in list(self._workers):
            if not worker.is_ready or worker.job is not None:
                continue
            worker.job = self._jobs.take()
            if worker.job is None:
                return
            try:
                worker.connection.send((worker.job.method, worker.job.arguments))
            except OSError:
                self._replace(worker, "died before it took the job")

    def _collect(self, timeout_s: float) -> None:
        """Takes what arrives within `timeout_s`, and replaces dead workers."""
        by_connection = {worker.connection: worker for worker in self._workers}
        ready = set(wait(list(by_connection), min(timeout_s, _CHECK_S)))
        for connection, worker in by_connection.items():
            job = worker.job
            if connection in ready or connection.poll():
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    self._replace(worker, "died")
                    continue
                self._handle(worker, message)
            elif worker.process.poll() is not None:
                self._replace(worker, "died")
            elif job is not None and job.seconds() > job.limit_s:
                self._replace(worker, f"hung for {job.limit_s:.0f} s")

    def _handle(self, worker: _Worker, message: tuple[Any, ...]) -> None:
        """Acts on what a worker sent."""
        if message != ("started",):
            job, worker.job = worker.job, None
            self._jobs.answer(job, message)
            return
        worker.is_ready = True
        try:
            worker.connection.send(self._setup)
        except OSError:
            self._replace(worker, "died at its start")

    def _replace(self, worker: _Worker, what: str) -> None:
        """Ends `worker` and starts another.

        Raises:
          EnvUnavailableError: too many workers died one after the other.
        """
        _kill(worker)
        worker.connection.close()
        self._workers.remove(worker)
        cause = f"{what} (exit status {worker.process.returncode})"
        self._jobs.lose(worker.job, f"environment worker {worker.process.pid}", cause)
        if self._jobs.is_hopeless():
            raise EnvUnavailableError(
                f"{self._jobs.num_losses_in_a_row} environment workers in a row "
                f"{cause}; see their messages above; is there enough memory and disk?"
            )
        self._workers.append(_start_worker())


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
