"""Sets jax up for a device stage: hosts of the run, compiled programs' cache, memory.

jax is imported only when one of these is called.
"""

import ctypes
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from launch.exits import RESTART_STATUS
from mlagent_jax.errors import MlAgentError, RunInterruptedError

# A lost host is noticed after this time. Stopping waits for nobody: an unfinished
# shutdown would keep a failed host's error from the others.
_HEARTBEAT_TIMEOUT_S = 30
_SHUTDOWN_TIMEOUT_S = 30


# Parameters of glibc's mallopt, by their numbers in malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Lets this process keep large pieces of memory that it frees, to use them again.

    Between two training steps XLA's CPU backend frees all its temporary arrays, and
    glibc returns pieces of that size to the kernel: every page of them costs a fault
    in the next step, a tenth of its time (BUILD_NOTES.md, "Trainer on CPU"). Call it
    before jax starts threads; with another C library it does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_ARENA_MAX, 1)  # one heap, since what one thread frees another takes
    mallopt(_M_MMAP_MAX, 0)  # from that heap, however large
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 << 20)  # bytes by which the heap grows at least


@contextmanager
def joined_hosts(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Iterator[None]:
    """Connects the hosts of the run while the block runs.

    A host that fails leaves at once: the usual end waits for all hosts, and they for
    this one.

    Args:
      coordinator: host:port of the first host, `auto` where jax finds it, None for a
        run on this host alone.
      num_processes: hosts of the run, None with `auto`.
      process_id: number of this host from 0, None with `auto`.
    """
    if coordinator is None:
        yield
        return
    import jax

    is_auto = coordinator == "auto"
    jax.distributed.initialize(
        coordinator_address=None if is_auto else coordinator,
        num_processes=num_processes,
        process_id=process_id,
        heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_S,
        shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT_S,
    )
    with ExitStack() as stack:
        stack.push(_leave_at_once)
        yield


def _leave_at_once(
    kind: type[BaseException] | None, error: BaseException | None, trace: Any
) -> None:
    """Ends the process without clean-up if there was an error."""
    import jax

    if error is None:
        return
    status = 2
    if isinstance(error, RunInterruptedError):
        status = RESTART_STATUS
    elif isinstance(error, jax.errors.JaxRuntimeError) and _is_lost_host(str(error)):
        error = RunInterruptedError(
            f"a step of all hosts failed ({error!s:.300}). Another host has ended; its "
            "log says why. The same command on all hosts continues"
        )
        status = RESTART_STATUS
    elif not isinstance(error, MlAgentError):
        traceback.print_exception(kind, error, trace)
        os._exit(1)
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(status)


def _is_lost_host(message: str) -> bool:
    return "RESOURCE_EXHAUSTED" not in message


def use_compilation_cache() -> None:
    """Keeps compiled XLA programs between processes (in the user's cache folder)."""
    import jax  # Only device stages may import jax.

    root = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    jax.config.update("jax_compilation_cache_dir", f"{root}/mlagent_jax/xla")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
