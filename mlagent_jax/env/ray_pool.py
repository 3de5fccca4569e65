"""The worker pool on a Ray cluster, for when one host's CPUs are too few.

Same interface and same answers as `env.worker_pool`: each worker is a Ray actor with
its own `Environment` on any node of the cluster. The folder of the snapshot store
must be shared by all nodes, and each needs this project and bubblewrap. An actor
that dies (its node was lost, out of memory) or hangs is replaced and its job tried
once more; then the job's result is an error, so no sample is lost silently. Ray is
imported when a pool is made (extra `ray`).
"""

import collections
import dataclasses
import importlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlagent_jax.config import EnvConfig
from mlagent_jax.env.worker import EnvironmentFactory, answer, make_environment
from mlagent_jax.env.worker_pool import (
    MAX_ATTEMPTS,
    Job,
    JobResult,
    job_limit_s,
    rebuild_error,
)
from mlagent_jax.errors import ConfigError, EnvUnavailableError
from mlagent_jax.types import EditorCall, State, Task

_log = logging.getLogger(__name__)

_CHECK_S = 0.5  # how often hanging actors are looked for while waiting
# Before one counts as hanging at its start: the cluster may be adding nodes.
_START_LIMIT_S = 600.0


@dataclasses.dataclass(kw_only=True)
class _Actor:
    """An actor, the reference of what it is busy with, and the job that is."""

    handle: Any
    ref: Any
    job: Job | None = None
    start_s: float = dataclasses.field(default_factory=time.monotonic)


class RayPool:
    """`cfg.num_workers` environments as actors of a Ray cluster.

    Used from one thread, and as a context manager so that no actor stays behind.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        store_root: Path,
        cfg: EnvConfig,
        *,
        make: EnvironmentFactory = make_environment,
    ) -> None:
        """Connects to the cluster and starts the actors; does not wait for them.

        Args:
          tasks: task id -> task.
          store_root: folder of the snapshot store, the same on all nodes.
          cfg: number of workers, address of the cluster, environment settings.
          make: importable function that a worker calls for its environment.

        Raises:
          ConfigError: Ray is not installed, or there is no cluster.
        """
        self._ray = _connect(cfg.ray_address)
        self._cfg = cfg
        self._tasks = tasks
        self._setup = self._ray.put((make, dict(tasks), store_root, cfg))
        # One CPU each, spread out; a lost one is replaced by us, with its job.
        self._actor_class = self._ray.remote(
            num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD"
        )(_Environment)
        self._queue: collections.deque[Job] = collections.deque()
        self._failed: list[tuple[Job, JobResult]] = []
        self._ids: set[str] = set()
        self._num_submitted = 0
        self._num_losses_in_a_row = 0
        self._actors = [self._start() for _ in range(cfg.num_workers)]

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
          EnvUnavailableError: actors are lost one after the other without finishing
            any job.
          MlAgentError: a worker met a fault of the user, e.g. a damaged file.
          RuntimeError: a worker met a bug; the text has its traceback.
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

    def close(self) -> None:
        """Ends all actors; pending jobs are lost. May be called twice."""
        actors, self._actors = self._actors, []
        self._queue.clear()
        self._ids.clear()
        for actor in actors:
            self._ray.kill(actor.handle)

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

    def _start(self) -> _Actor:
        handle = self._actor_class.remote()
        return _Actor(handle=handle, ref=handle.start.remote(self._setup))

    def _dispatch(self) -> None:
        """Gives queued jobs to idle actors."""
        for actor in self._actors:
            if not self._queue:
                return
            if actor.ref is not None:
                continue
            job = actor.job = self._queue.popleft()
            job.num_attempts += 1
            actor.start_s = time.monotonic()
            actor.ref = actor.handle.run.remote(job.method, job.arguments)

    def _collect(self, timeout_s: float) -> list[tuple[Job, JobResult]]:
        """Returns what arrived within `timeout_s`, and replaces lost actors."""
        busy = {actor.ref: actor for actor in self._actors if actor.ref is not None}
        ready: list[Any] = []
        if busy:
            ready, _ = self._ray.wait(list(busy), timeout=timeout_s)
        done: list[tuple[Job, JobResult]] = []
        for ref, actor in busy.items():
            limit_s = _START_LIMIT_S if actor.job is None else actor.job.limit_s
            if ref in ready:
                try:
                    message = self._ray.get(ref)
                except self._ray.exceptions.RayError as error:
                    self._replace(actor, f"was lost ({type(error).__name__})")
                    continue
                done += self._handle(actor, message)
            elif time.monotonic() - actor.start_s > limit_s:
                self._replace(actor, f"hung for {limit_s:.0f} s")
        return done

    def _handle(
        self, actor: _Actor, message: tuple[Any, ...]
    ) -> list[tuple[Job, JobResult]]:
        """Acts on an answer; returns the job that it finishes, if any.

        Raises:
          MlAgentError: the worker met a fault of the user.
          RuntimeError: the worker met a bug.
        """
        job, actor.job, actor.ref = actor.job, None, None
        match message:
            case ("started",):
                return []
            case ("done", value, error, seconds):
                assert job is not None, "an actor answered without a job"
                self._num_losses_in_a_row = 0
                result = JobResult(
                    job_id=job.id, value=value, error=error, seconds=seconds
                )
                return [(job, result)]
            case ("raised", name, text):
                if job is not None:
                    self._ids.discard(job.id)
                error = rebuild_error(name, text)
                raise error
            case _:
                raise RuntimeError(f"unknown message from a worker: {message!r:.80}")

    def _replace(self, actor: _Actor, what: str) -> None:
        """Starts another actor and decides what becomes of the lost one's job.

        Raises:
          EnvUnavailableError: too many were lost one after the other.
        """
        job = actor.job
        _log.warning(
            "an environment worker on Ray %s%s",
            what,
            "" if job is None else f" at job {job.id}, attempt {job.num_attempts}",
        )
        self._ray.kill(actor.handle)
        self._actors.remove(actor)
        if job is not None and job.num_attempts < MAX_ATTEMPTS:
            self._queue.appendleft(job)
        elif job is not None:
            error = f"the worker {what}, {job.num_attempts} times"
            seconds = time.monotonic() - actor.start_s
            result = JobResult(job_id=job.id, value=None, error=error, seconds=seconds)
            self._failed.append((job, result))
        self._num_losses_in_a_row += 1
        # A node takes all of its actors along, and each job is tried again.
        if self._num_losses_in_a_row > 3 + 2 * self._cfg.num_workers:
            raise EnvUnavailableError(
                f"{self._num_losses_in_a_row} environment workers on Ray in a row "
                f"were lost (the last one {what}); see the cluster's logs"
            )
        self._actors.append(self._start())


class _Environment:
    """What runs in an actor; its answers are those of `env.worker`."""

    def __init__(self) -> None:
        self._environment: Any = None

    def start(self, setup: tuple[Any, ...]) -> tuple[Any, ...]:
        """Makes the environment."""
        make, *arguments = setup

        def make_it() -> None:
            self._environment = make(*arguments)

        message = answer(make_it)
        return ("started",) if message[0] == "done" else message

    def run(self, method: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Calls a method of the environment."""
        return answer(lambda: getattr(self._environment, method)(*arguments))


def _connect(address: str) -> Any:
    """Returns the ray module, connected.

    Raises:
      ConfigError: Ray is not installed, or there is no cluster.
    """
    try:
        # By name: an optional package that type checkers need not find.
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(
            "env.backend = 'ray' needs Ray: pip install 'mlagent_jax[ray]'"
        ) from error
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=True, logging_level="warning")
        except (ConnectionError, ValueError) as error:
            raise ConfigError(
                f"env.ray_address = {address!r}: no Ray cluster there ({error}); "
                "start one with `ray start --head`"
            ) from error
    return ray
