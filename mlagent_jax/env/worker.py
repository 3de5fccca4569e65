"""The child's side of `env.worker_pool`: one environment that serves jobs over a pipe.

Messages to the parent: `("started",)` once, then for each job `("done", value, error,
seconds)`, or `("raised", type name, text)` for what the parent must raise.
"""

import functools
import os
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mlagent_jax.config import EnvConfig
from mlagent_jax.env.environment import Environment
from mlagent_jax.env.execution_cache import ExecutionCache
from mlagent_jax.env.executor import Executor
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.errors import EnvUnavailableError, MlAgentError
from mlagent_jax.types import Task

EnvironmentFactory = Callable[[Mapping[str, Task], Path, EnvConfig], Environment]

_ORPHAN_GRACE_S = 4.0  # for an idle worker to close its sandbox


def make_environment(
    tasks: Mapping[str, Task], store_root: Path, cfg: EnvConfig
) -> Environment:
    """Returns the environment of one worker."""
    store = SnapshotStore(store_root)
    cache = ExecutionCache(store) if cfg.use_cache else None
    return Environment(tasks, store, Executor(tasks, cfg), cfg, cache)


def run_worker(descriptor: int) -> None:
    """Serves jobs over the pipe `descriptor` until the parent closes it.

    Args:
      descriptor: inherited end of a duplex pipe.
    """
    # Neither scripts nor their helpers may hold the pipe open or write to it.
    os.set_inheritable(descriptor, False)
    # The parent decides what Ctrl-C means; a worker ends when its pipe does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, args=(descriptor,), daemon=True).start()
    connection: Connection[Any, Any] = Connection(descriptor)
    try:
        connection.send(("started",))
        _serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone or has closed the pool


def _serve(connection: "Connection[Any, Any]") -> None:
    make, *setup = connection.recv()
    try:
        environment: Environment = make(*setup)
    except Exception as error:  # noqa: BLE001 - the boundary: raised by the parent
        connection.send(("raised", type(error).__name__, _describe(error)))
        return
    try:
        while True:
            method, arguments = connection.recv()
            connection.send(
                answer(functools.partial(_call, environment, method, arguments))
            )
    finally:
        environment.close()


def _call(environment: Environment, method: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(environment, method)(*arguments)


def answer(job: Callable[[], Any]) -> tuple[Any, ...]:
    """Returns the message about a job: what it returned or why it did not.

    Args:
      job: does the work.
    """
    start_s = time.perf_counter()
    value, text = None, ""
    try:
        value = job()
    except EnvUnavailableError as error:
        text = str(error) or type(error).__name__
    except Exception as error:  # noqa: BLE001 - the boundary: raised by the parent
        return ("raised", type(error).__name__, _describe(error))
    return ("done", value, text, time.perf_counter() - start_s)


def _die_with_parent(descriptor: int) -> None:
    """Ends this process soon after the other end of its pipe is closed.

    The main thread notices that by itself, but not while it waits for a script.
    """
    poller = select.poll()
    poller.register(descriptor, 0)  # a hang-up is reported even if not asked for
    poller.poll()
    time.sleep(_ORPHAN_GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _describe(error: Exception) -> str:
    """Returns the text of a deliberate error, the whole traceback of any other."""
    if isinstance(error, MlAgentError):
        return str(error)
    return "".join(traceback.format_exception(error))
