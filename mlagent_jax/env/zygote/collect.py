"""Reads back what a script left in its workspace.

Runs after every process of the script is dead. The workspace's content is hostile:
links are not followed, only regular files are opened, and never blockingly.
"""

import dataclasses
import os
import stat

from .protocol import Job

SUBMISSION_FILE = "submission.csv"
_SKIPPED_DIRS = frozenset({"__pycache__", ".ipynb_checkpoints"})
_MAX_EVENTS = 20
_MAX_DEPTH = 20
_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collected:
    """Content of a workspace.

    Attributes:
      files: relative path -> content, without data/ and the submission.
      submission: content of submission.csv, None if there is no such regular file.
      events: what was not taken: "skipped_file:path", "not_a_file:submission.csv".
      is_too_large: True if a limit was passed; files and submission are then void.
    """

    files: dict[str, bytes]
    submission: bytes | None
    events: tuple[str, ...]
    is_too_large: bool


def collect(workspace: str, job: Job) -> Collected:
    """Returns the regular files below `workspace`, in sorted order."""
    collector = _Collector(job)
    root_fd = os.open(workspace, _DIR_FLAGS)
    try:
        collector.take_folder(root_fd, "", 0)
    except _TooLargeError:
        return Collected(files={}, submission=None, events=(), is_too_large=True)
    finally:
        os.close(root_fd)
    return Collected(
        files=collector.files,
        submission=collector.submission,
        events=tuple(collector.events[:_MAX_EVENTS]),
        is_too_large=False,
    )


class _TooLargeError(Exception):
    """The workspace holds more than is kept."""


class _Collector:
    """Goes down from open folders only: no path is resolved, so none can mislead."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._left_bytes = job.kept_bytes
        self._num_folders = 0
        self.files: dict[str, bytes] = {}
        self.submission: bytes | None = None
        self.events: list[str] = []

    def take_folder(self, folder_fd: int, prefix: str, depth: int) -> None:
        self._num_folders += 1
        if depth > _MAX_DEPTH or self._num_folders > self._job.kept_files:
            raise _TooLargeError
        for name in sorted(os.listdir(folder_fd)):
            path = prefix + name
            if name in _SKIPPED_DIRS or path == "data":
                continue
            try:
                path.encode()  # a name that is no text cannot travel on
                is_folder = stat.S_ISDIR(os.lstat(name, dir_fd=folder_fd).st_mode)
                if is_folder and path != SUBMISSION_FILE:
                    fd = os.open(name, _DIR_FLAGS, dir_fd=folder_fd)
                    try:
                        self.take_folder(fd, path + "/", depth + 1)
                    finally:
                        os.close(fd)
                else:
                    self._take_file(name, folder_fd, path)
            except (OSError, UnicodeEncodeError):
                kind = "not_a_file" if path == SUBMISSION_FILE else "skipped_file"
                self.events.append(f"{kind}:{ascii(path)[1:-1]}")

    def _take_file(self, name: str, folder_fd: int, path: str) -> None:
        if path == SUBMISSION_FILE:
            self.submission = _read_regular(name, folder_fd, self._job.file_bytes)
            return
        if len(self.files) == self._job.kept_files:
            raise _TooLargeError
        self.files[path] = _read_regular(name, folder_fd, self._left_bytes)
        self._left_bytes -= len(self.files[path])


def _read_regular(name: str, folder_fd: int, max_bytes: int) -> bytes:
    """Returns the file's content.

    Raises:
      OSError: not a regular file with one name, or not readable.
      _TooLargeError: it is larger than `max_bytes`.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=folder_fd)
    try:
        status = os.fstat(fd)
        # A second name may lie outside the workspace: the weak backend cannot tell.
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise OSError("not a regular file with one name")
        if status.st_size > max_bytes:
            raise _TooLargeError
        with os.fdopen(fd, "rb", closefd=False) as file:
            return file.read(max_bytes)
    finally:
        os.close(fd)
