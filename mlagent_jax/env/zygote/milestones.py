"""What a script achieves, as the sandbox sees it: nothing that it prints counts.

The marks lie in memory that the supervisor shares with the script's process, and an
audit hook, which Python code cannot take away, sets them. A script that looks for them
on purpose can forge them; they are worth no more than a little partial credit.
"""

import mmap
import os
import sys

DATA_READ = "data_read"
_NAMES = (DATA_READ,)


def make_marks() -> mmap.mmap:
    """Returns marks that a forked process can set."""
    return mmap.mmap(-1, len(_NAMES))


def watch(marks: mmap.mmap) -> None:
    """Sets marks from now on; called in the script's process and workspace."""
    root = os.path.join(os.getcwd(), "data") + os.sep
    abspath, fsdecode, path_types = os.path.abspath, os.fsdecode, (str, bytes)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event != "open" or marks[0]:
            return
        path = arguments[0]
        if isinstance(path, path_types) and abspath(fsdecode(path)).startswith(root):
            marks[0] = 1

    sys.addaudithook(hook)


def reached(marks: mmap.mmap) -> tuple[str, ...]:
    """Returns the names of the marks that are set."""
    return tuple(name for i, name in enumerate(_NAMES) if marks[i])
