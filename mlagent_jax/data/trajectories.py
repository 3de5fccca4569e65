"""Append-only JSONL files of trajectories: one writer, any number of readers.

A line is written and synced as a whole, or not at all: what a killed process left
half-written is cut off when the file is opened again, and a full disk leaves the
file as it was. The order of lines depends on timing, so readers order by id.
"""

import dataclasses
import fcntl
import json
import logging
import os
import re
from collections.abc import Iterator, Set
from pathlib import Path
from types import TracebackType
from typing import Self

from mlagent_jax.errors import DataError, EnvUnavailableError
from mlagent_jax.types import Trajectory, from_json, to_json

_log = logging.getLogger(__name__)

# `to_json` writes fields in order, so every line starts with the id.
_LINE_START = re.compile(rb'\{"id": ("(?:[^"\\]|\\.)*")')


class TrajectoryWriter:
    """Appends trajectories to one file; the only process that does.

    Args:
      path: JSONL file; made with its folder if it does not exist.

    Raises:
      DataError: another process has the file open for writing, or a line other
        than a half-written last one is damaged.
      EnvUnavailableError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, flags, 0o644)
        except OSError as error:
            raise EnvUnavailableError(_cannot_write(path, error)) from error
        try:
            self._lock()
            entries, end = _scan(path)
            size = os.fstat(self._fd).st_size
            if size > end:
                _log.warning(
                    "%s: cut off a half-written last line (%d bytes)", path, size - end
                )
                os.ftruncate(self._fd, end)
        except BaseException:
            os.close(self._fd)
            raise
        self._ids = {entry.id for entry in entries}
        self._size = end

    @property
    def ids(self) -> Set[str]:
        """Ids of the trajectories in the file."""
        return frozenset(self._ids)

    def append(self, trajectory: Trajectory) -> None:
        """Writes one line and waits until it is on the disk.

        Raises:
          DataError: the file holds a trajectory of this id.
          EnvUnavailableError: the disk is full or failing; the file is as before.
        """
        if trajectory.id in self._ids:
            raise DataError(f"{self.path}: duplicate trajectory id {trajectory.id!r}")
        line = json.dumps(to_json(trajectory)).encode() + b"\n"
        try:
            _write_all(self._fd, line)
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, self._size)
            raise EnvUnavailableError(_cannot_write(self.path, error)) from error
        self._size += len(line)
        self._ids.add(trajectory.id)

    def close(self) -> None:
        """Closes the file; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{self.path}: another process is writing it; wait for it or stop it"
            ) from error


@dataclasses.dataclass(frozen=True)
class _Entry:
    id: str
    offset: int
    line_number: int


class TrajectoryFile:
    """Random access to the trajectories of a file, ordered by id.

    Only ids and offsets stay in memory. Lines that another process appends later
    are not seen.

    Args:
      path: JSONL file that `TrajectoryWriter` wrote.

    Raises:
      DataError: no such file, a line that is no trajectory, or an id twice.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"{path}: no such file; has the collect stage run?")
        self.path = path
        entries, end = _scan(path)
        if path.stat().st_size > end:
            _log.warning("%s: ignored a half-written last line", path)
        self._entries = sorted(entries, key=lambda entry: entry.id)
        self._index = {entry.id: i for i, entry in enumerate(self._entries)}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Trajectory]:
        return (self.read(i) for i in range(len(self)))

    def ids(self) -> tuple[str, ...]:
        """Returns all ids in ascending order; `read(i)` has the i-th of them."""
        return tuple(entry.id for entry in self._entries)

    def read(self, i: int) -> Trajectory:
        """Returns the trajectory with the i-th smallest id.

        Raises:
          DataError: its line is damaged; the message names file and line.
        """
        entry = self._entries[i]
        where = f"{self.path}:{entry.line_number}"
        with self.path.open("rb") as file:
            file.seek(entry.offset)
            line = file.readline()
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: damaged line: {error}") from error
        return from_json(Trajectory, value, where)

    def read_id(self, trajectory_id: str) -> Trajectory:
        """Returns the trajectory of an id.

        Raises:
          DataError: the file has no such id, or its line is damaged.
        """
        if trajectory_id not in self._index:
            raise DataError(f"{self.path}: no trajectory {trajectory_id!r}")
        return self.read(self._index[trajectory_id])


def _scan(path: Path) -> tuple[list[_Entry], int]:
    """Returns the entries of a file and the offset behind its last whole line.

    Raises:
      DataError: a whole line is no trajectory, or an id occurs twice.
    """
    entries: list[_Entry] = []
    line_of: dict[str, int] = {}
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            match = _LINE_START.match(line)
            if match is None or not line.endswith(b"}\n"):
                raise DataError(
                    f"{path}:{number}: damaged line {line[:60]!r}; "
                    "restore the file, or delete the line to have it made again"
                )
            trajectory_id = _decode_id(match.group(1), f"{path}:{number}")
            if trajectory_id in line_of:
                raise DataError(
                    f"{path}:{number}: duplicate trajectory id {trajectory_id!r}, "
                    f"first on line {line_of[trajectory_id]}"
                )
            line_of[trajectory_id] = number
            entries.append(_Entry(trajectory_id, offset, number))
            offset += len(line)
    return entries, offset


def _decode_id(text: bytes, where: str) -> str:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: damaged trajectory id {text[:60]!r}") from error


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _cannot_write(path: Path, error: OSError) -> str:
    return (
        f"{path}: cannot write ({error.strerror}); nothing half-written is left; "
        "solve that and run the same command again"
    )
