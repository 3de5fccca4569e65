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
    files: dict[str, bytes] = {}
    events: list[str] = []
    submission: bytes | None = None
    left_bytes = job.kept_bytes
    for folder, dirs, names, folder_fd in os.fwalk(workspace):
        prefix = os.path.relpath(folder, workspace)
        is_root = prefix == "."
        if is_root and SUBMISSION_FILE in dirs:
            events.append(f"not_a_file:{SUBMISSION_FILE}")
        dirs[:] = sorted(
            d for d in dirs if d not in _SKIPPED_DIRS and not (is_root and d == "data")
        )
        for name in sorted(names):
            path = name if is_root else os.path.join(prefix, name)
            is_submission = path == SUBMISSION_FILE
            limit = job.file_bytes if is_submission else left_bytes
            try:
                content = _read_regular(name, folder_fd, limit)
                path.encode()  # a name that is no text cannot travel on
            except (OSError, UnicodeEncodeError):
                kind = "not_a_file" if is_submission else "skipped_file"
                events.append(f"{kind}:{ascii(path)[1:-1]}")
                continue
            if content is None or len(files) == job.kept_files:
                return Collected(
                    files={}, submission=None, events=(), is_too_large=True
                )
            if is_submission:
                submission = content
            else:
                files[path] = content
                left_bytes -= len(content)
    return Collected(
        files=files,
        submission=submission,
        events=tuple(events[:_MAX_EVENTS]),
        is_too_large=False,
    )


def _read_regular(name: str, folder_fd: int, max_bytes: int) -> bytes | None:
    """Returns the file's content, None if it is larger than `max_bytes`.

    Raises:
      OSError: not a regular file with one name, or not readable.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=folder_fd)
    try:
        status = os.fstat(fd)
        # A second name may lie outside the workspace: the weak backend cannot tell.
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise OSError("not a regular file with one name")
        if status.st_size > max_bytes:
            return None
        with os.fdopen(fd, "rb", closefd=False) as file:
            content = file.read(max_bytes + 1)
    finally:
        os.close(fd)
    return content if len(content) <= max_bytes else None
