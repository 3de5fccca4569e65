"""The worker pool on a Ray cluster, for when one host's CPUs are too few.

Same interface and same answers as `env.worker_pool`: each worker is a Ray actor with
its own `Environment` on any node of the cluster. The folder of the snapshot store
must be shared by all nodes, and each needs this project and bubblewrap. An actor
that dies (its node was lost, out of memory) or hangs is replaced and its job tried
once more; then the job's result is an error, so no sample is lost silently. Ray is
imported when a pool is made (extra `ray`).
"""

import dataclasses
import importlib
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlagent_jax.config import EnvConfig
from mlagent_jax.env.pool_jobs import Job, JobResult, PoolJobs
from mlagent_jax.env.worker import EnvironmentFactory, answer, make_environment
from mlagent_jax.errors import ConfigError, EnvUnavailableError
from mlagent_jax.types import EditorCall, State, Task

_CHECK_S = 0.5  # how often hanging actors are looked for while waiting
# Before one counts as hanging at its start: the cluster may be adding nodes.
_START_LIMIT_S = 600.0
_CONNECT_LIMIT_S = 10.0


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
        self._setup = self._ray.put((make, dict(tasks), store_root, cfg))
        # One CPU each, spread out; a lost one is replaced by us, with its job.
        self._actor_class = self._ray.remote(
            num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD"
        )(_Environment)
        self._jobs = PoolJobs(tasks, cfg.num_workers)
        self._actors = [self._start() for _ in range(cfg.num_workers)]

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
          EnvUnavailableError: actors are lost one after the other without finishing
            any job.
          MlAgentError: a worker met a fault of the user, e.g. a damaged file.
          RuntimeError: a worker met a bug; the text has its traceback.
        """
        return self._jobs.wait(
            timeout_s, dispatch=self._dispatch, collect=self._collect
        )

    def num_pending(self) -> int:
        """Returns how many submitted jobs `poll` has not returned yet."""
        return self._jobs.num_pending()

    def close(self) -> None:
        """Ends all actors; pending jobs are lost. May be called twice."""
        actors, self._actors = self._actors, []
        self._jobs.clear()
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

    def _start(self) -> _Actor:
        handle = self._actor_class.remote()
        return _Actor(handle=handle, ref=handle.start.remote(self._setup))

    def _dispatch(self) -> None:
        """Gives waiting jobs to idle actors."""
        for actor in self._actors:
            if actor.ref is not None:
                continue
            job = actor.job = self._jobs.take()
            if job is None:
                return
            actor.ref = actor.handle.run.remote(job.method, job.arguments)

    def _collect(self, timeout_s: float) -> None:
        """Takes what arrives within `timeout_s`, and replaces lost actors."""
        busy = {actor.ref: actor for actor in self._actors if actor.ref is not None}
        ready: list[Any] = []
        if busy:
            ready, _ = self._ray.wait(list(busy), timeout=min(timeout_s, _CHECK_S))
        for ref, actor in busy.items():
            limit_s = _START_LIMIT_S if actor.job is None else actor.job.limit_s
            start_s = actor.start_s if actor.job is None else actor.job.start_s
            if ref in ready:
                try:
                    message = self._ray.get(ref)
                except self._ray.exceptions.RayError as error:
                    self._replace(actor, f"was lost ({type(error).__name__})")
                    continue
                self._handle(actor, message)
            elif time.monotonic() - start_s > limit_s:
                self._replace(actor, f"hung for {limit_s:.0f} s")

    def _handle(self, actor: _Actor, message: tuple[Any, ...]) -> None:
        """Acts on an answer; the actor is idle again."""
        job, actor.job, actor.ref = actor.job, None, None
        if message != ("started",):
            self._jobs.answer(job, message)

    def _replace(self, actor: _Actor, what: str) -> None:
        """Starts another actor in the place of a lost one.

        Raises:
          EnvUnavailableError: too many were lost one after the other.
        """
        self._jobs.lose(actor.job, "an environment worker on Ray", what)
        self._ray.kill(actor.handle)
        self._actors.remove(actor)
        # A node takes all of its actors along, and each job is tried again.
        if self._jobs.is_hopeless():
            raise EnvUnavailableError(
                f"{self._jobs.num_losses_in_a_row} environment workers on Ray in a row "
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
            _knock(address)
            ray.init(address=address, log_to_driver=True, logging_level="warning")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"env.ray_address = {address!r}: no Ray cluster there ({error}); "
                "start one with `ray start --head`"
            ) from error
    return ray


def _knock(address: str) -> None:
    """Opens a connection to the cluster's address, if it is one, and closes it.

    Ray itself tries for more than five minutes, and ends the process in some versions.

    Raises:
      OSError: nobody listens there.
      ValueError: the port is not a number.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon:
        with socket.create_connection((host, int(port)), timeout=_CONNECT_LIMIT_S):
            pass
