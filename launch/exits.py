"""How a program ends: error messages, exit statuses, and not after its parent."""

import ctypes
import os
import signal
import sys

# Exit status of a run that the same command continues (EX_TEMPFAIL of sysexits.h).
RESTART_STATUS = 75

# Set by launch.pipeline for the stages it starts.
PARENT_PID = "MLAGENT_PIPELINE_PID"
_PR_SET_PDEATHSIG = 1


def fail(message: str, status: int = 2) -> None:
    """Prints `message` as one error and exits with `status`."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def die_with_parent() -> None:
    """Makes this process end when its parent does, even by kill -9 (Linux).

    Without it a killed pipeline would leave its stage writing into the run
    directory while the same command starts again.
    """
    parent = os.environ.get(PARENT_PID)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        fail("the pipeline that started this stage is gone", status=1)
