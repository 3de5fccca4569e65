"""Notes which files out of its reach a script asked for.

Keeps nobody out: that is the confinement's business, and complete before a script's
first line. This only tells the honest mistake and the crude attempt, which fail, from
a run that did not try. It sees what Python code opens, lists, links, renames or
removes, also in forked processes; a script that goes around Python's functions (ctypes,
another program) is stopped as well, but not noted.

The notes lie in memory that the script's process shares with its supervisor, since a
descriptor could be found and abused. They come from hostile code and are read as such.
"""

import mmap
import os
import re
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

_BYTES = 1 << 14
_USED = struct.Struct("=I")  # at the start: bytes that are taken, this included
_MAX_NOTES = 20
_MAX_NOTE_CHARS = 300
# Audit event -> how many of its first arguments are paths that it looks at.
_LOOKS = dict.fromkeys(
    ["open", "os.listdir", "os.scandir", "os.chdir", "os.link", "os.symlink"], 1
)
_CHANGES = {"os.rename": 2, "os.remove": 1, "os.truncate": 1, "os.chmod": 1}
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# Facts about the machine that libraries read.
_SYSTEM = ("/dev", "/etc", "/sys", "/proc")
_OTHER_PROCESS = re.compile(r"/proc/(\d+)(?:/|$)")
_NOTE = re.compile(r"[a-z_]+:[ -~]+")


class Tripwire:
    """Shared memory for the notes of one run; make it before the script's fork."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _BYTES)
        self._memory[: _USED.size] = _USED.pack(_USED.size)

    def arm(self, workspace: str, readable: Sequence[str], own: Sequence[str]) -> None:
        """Watches the calling process, and all that it forks, for good.

        Args:
          workspace: its working directory; data/ below it must not be changed.
          readable: what scripts may read but not change: system and packages.
          own: further folders that belong to the run.
        """
        sys.addaudithook(_make_hook(self._note, workspace, readable, own))

    def notes(self) -> list[str]:
        """Returns "outside_path:..." and "protected_file:..." in order."""
        (used,) = _USED.unpack(self._memory[: _USED.size])
        text = self._memory[_USED.size : min(max(used, _USED.size), _BYTES)]
        lines = text.decode("ascii", "replace").split("\n")
        found = dict.fromkeys(x[:_MAX_NOTE_CHARS] for x in lines if _NOTE.fullmatch(x))
        return list(found)[:_MAX_NOTES]

    def _note(self, text: str) -> None:
        line = ascii(text)[1:-1][:_MAX_NOTE_CHARS].encode() + b"\n"
        (used,) = _USED.unpack(self._memory[: _USED.size])
        end = used + len(line)
        if end <= _BYTES:
            self._memory[used:end] = line
            self._memory[: _USED.size] = _USED.pack(end)


def _make_hook(
    note: Callable[[str], None],
    workspace: str,
    readable: Sequence[str],
    own: Sequence[str],
) -> Callable[[str, tuple[Any, ...]], None]:
    """Returns an audit hook; it uses nothing that the script could replace."""
    abspath, fsdecode, getpid = os.path.abspath, os.fsdecode, os.getpid
    exists = os.path.lexists
    data = f"{workspace}/data"
    looks, changes = dict(_LOOKS), dict(_CHANGES)
    seen: set[str] = set()

    def is_below(path: str, folders: Sequence[str]) -> bool:
        return any(path == f or path.startswith(f"{f}/") for f in folders)

    def look(name: str, *, is_change: bool) -> None:
        if name.startswith("/") or ".." in name or is_change:
            path = abspath(name)
        else:
            return  # in the workspace, and only read
        process = _OTHER_PROCESS.match(path)
        if is_change and is_below(path, (data, *readable)):
            inner = path.startswith(f"{data}/") or path == data
            kind = "protected_file"
            path = path[len(workspace) + 1 :] if inner else path
        elif process is not None and int(process[1]) != getpid():
            kind = "outside_path"
        elif is_below(path, (workspace, *readable, *_SYSTEM)) or path == "/":
            return
        elif is_below(path, own) and (is_change or exists(path)):
            return  # what is missing there may be a file of the host, out of reach
        else:
            kind = "outside_path"
        text = f"{kind}:{path}"
        if text not in seen and len(seen) < _MAX_NOTES:
            seen.add(text)
            note(text)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        num_paths = looks.get(event) or changes.get(event)
        if num_paths is None:
            return
        try:
            is_change = event in changes
            if event == "open":
                mode, flags = arguments[1], arguments[2]
                is_change = bool(flags & _WRITE_FLAGS) or (
                    isinstance(mode, str) and not set("wax+").isdisjoint(mode)
                )
            for argument in arguments[:num_paths]:
                if not isinstance(argument, int):  # a descriptor was opened before
                    look(fsdecode(argument), is_change=is_change)
        except Exception:  # noqa: BLE001 - a script must not fail by being watched
            return

    return hook
