"""The script's process: turns a forked zygote into `python -u script.py`.

From the first line of the script on, everything in this process belongs to hostile
code, this module included; confinement is complete before.
"""

import atexit
import builtins
import contextlib
import gc
import io
import mmap
import os
import random
import sys
import threading
import types
from typing import NoReturn

from . import confine, milestones

_OWN_PACKAGE = __package__ or "zygote"


def become_fresh_interpreter(stdin: int, stdout: int, stderr: int) -> None:
    """Replaces what this process inherited: descriptors, streams, signals, randomness.

    The two global random generators start from a fixed seed. After a fork, numpy's
    would otherwise continue the zygote's state, equal for all scripts of one zygote
    and different in the next; with it, a script without a seed gives the same result
    on every worker and after a restart.
    """
    for number, fd in enumerate((stdin, stdout, stderr)):
        os.dup2(fd, number, inheritable=True)
    sys.stdin = os.fdopen(0, "r", encoding="utf-8", closefd=False)
    # Written at once, as with `python -u`: a script that is killed keeps its output.
    sys.stdout = _open_output(1, "strict")
    sys.stderr = _open_output(2, "backslashreplace")
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # pyright: ignore[reportAttributeAccessIssue]
    confine.reset_signals()
    random.seed(0)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(0)


def _open_output(fd: int, errors: str) -> io.TextIOWrapper:
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding="utf-8", errors=errors, line_buffering=True
    )


def run(script: str, marks: mmap.mmap) -> NoReturn:
    """Runs `script` as `__main__` and ends the process as an interpreter would.

    Args:
      script: path relative to the working directory.
      marks: shared with the supervisor, see `milestones`.
    """
    exit_now = os._exit  # the script may replace the module's
    for name in list(sys.modules):
        if name == _OWN_PACKAGE or name.startswith(_OWN_PACKAGE + "."):
            del sys.modules[name]
    status = 1
    try:
        milestones.watch(marks)
        status = _execute(script)
        status = _finish(status)
    finally:
        exit_now(status)


def _execute(script: str) -> int:
    main = types.ModuleType("__main__")
    path = os.path.abspath(script)
    main.__dict__.update(__file__=path, __builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = main
    sys.argv = [script]
    sys.path.insert(0, os.path.dirname(path))
    multiprocessing_process = sys.modules.get("multiprocessing.process")
    if multiprocessing_process is not None:  # remembers where it was imported
        setattr(multiprocessing_process, "ORIGINAL_DIR", os.getcwd())  # noqa: B010
    try:
        # The relative name: tracebacks must not depend on where the workspace is.
        with open(script, "rb") as file:
            code = compile(file.read(), script, "exec", dont_inherit=True)
        exec(code, main.__dict__)
    except SystemExit as e:
        return _exit_status(e.code)
    except BaseException as e:  # noqa: BLE001 - the outermost frame of a process
        traceback = e.__traceback__
        inner = traceback.tb_next if traceback is not None else None
        sys.excepthook(type(e), e.with_traceback(inner), inner)
        return 1
    return 0


def _exit_status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)  # noqa: T201 - as sys.exit("text") does
    return 1


def _finish(status: int) -> int:
    """Does what matters of an interpreter's shutdown; the rest costs 0.1 s.

    Waits for threads, runs exit functions, closes forgotten files. A freed library
    serves nobody in a process that is about to end.
    """
    try:
        # No public names do this; an unused ThreadPoolExecutor ends only so.
        for module, function in ((threading, "_shutdown"), (atexit, "_run_exitfuncs")):
            getattr(module, function)()
        # Before the collector, which may close a file's layers in the wrong order.
        for item in gc.get_objects():
            if isinstance(item, io.TextIOWrapper | io.BufferedWriter):
                with contextlib.suppress(ValueError):  # closed, or detached
                    item.flush()
        sys.modules.pop("__main__", None)
        gc.collect()  # archives and the like write their end when they are freed
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as e:  # noqa: BLE001 - the outermost frame of a process
        sys.excepthook(type(e), e, e.__traceback__)
        return status or 120  # what CPython returns if it cannot flush
    return status
