"""Runs a stage on a TPU VM slice to its end, whatever becomes of the slice."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.tpu import vm
from launch.tpu.settings import PodSettings
from mlagent_jax.errors import MlAgentError, RunInterruptedError

# (command, is its output wanted?) -> (exit status, output)
Execute = Callable[[Sequence[str], bool], tuple[int, str]]

_POLL_S = 30.0
_ACTIVE = "ACTIVE"
# States from which a queued resource never becomes active again.
_GONE = ("FAILED", "SUSPENDING", "SUSPENDED")
# The same command would fail again: a bug, or a refused setting.
_FINAL_STATUSES = {"1", "2"}


class StageFailedError(MlAgentError):
    """The stage failed by its own fault; starting it again would not help."""


def run_until_done(
    pod: PodSettings,
    archive: Path,
    execute: Execute,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Gets a slice, runs the stage on it, and does so again while it is interrupted.

    Args:
      pod: what to run where.
      archive: where the packed code may be written.
      execute: runs a command of this machine.
      sleep: waits between two looks at the slice.

    Raises:
      StageFailedError: the stage refused its settings or met a bug.
      RunInterruptedError: it was interrupted too often.
    """
    for command in vm.ship(pod, archive):
        _must(execute, command)
    for _ in range(pod.max_restarts + 1):
        _get_slice(pod, execute, sleep)
        status, _ = execute(vm.start(pod), False)
        if status == 0:
            return
        ended = set(execute(vm.statuses(pod), True)[1].split())
        if ended & _FINAL_STATUSES:
            raise StageFailedError(
                f"{pod.stage} failed on {pod.name} (exit statuses {sorted(ended)}); "
                f"its logs: python -m launch.tpu logs ... or {pod.bucket}/runs/"
                f"{pod.name}/logs. The slice is still there; `delete` gives it back"
            )
    raise RunInterruptedError(
        f"{pod.stage} on {pod.name} was interrupted {pod.max_restarts + 1} times; the "
        "same command continues"
    )


def _get_slice(
    pod: PodSettings, execute: Execute, sleep: Callable[[float], None]
) -> None:
    """Returns when the slice is active; one that was taken away is replaced."""
    while True:
        status, output = execute(vm.state(pod), True)
        state = output.strip()
        if status != 0:  # it is not there
            _must(execute, vm.create(pod))
        elif state == _ACTIVE:
            return
        elif state in _GONE:
            _must(execute, vm.delete(pod))
        sleep(_POLL_S)


def _must(execute: Execute, command: Sequence[str]) -> None:
    """Runs a command that has to succeed.

    Raises:
      StageFailedError: it did not.
    """
    status, _ = execute(command, False)
    if status != 0:
        raise StageFailedError(f"exit status {status} of: {' '.join(command)}")
