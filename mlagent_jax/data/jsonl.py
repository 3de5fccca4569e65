"""Append-only files of JSON lines: written whole and synced, read one at a time.

For records without an index. A last line that a killed process left half-written is
never an error: readers pass over it and `heal` cuts it off. (Trajectories have
`data.trajectories`, which also finds them by id.)
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlagent_jax.errors import DataError


def append_line(path: Path, value: Any) -> None:
    """Appends one line and makes sure that it reached the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(json.dumps(value).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[tuple[Any, str]]:
    """Yields (parsed line, "file:number"); nothing if there is no file.

    Raises:
      DataError: a whole line is not JSON; the file and line are named.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            where = f"{path}:{number}"
            try:
                yield json.loads(line), where
            except ValueError as error:
                raise DataError(
                    f"{where}: not JSON ({error}); remove the line"
                ) from error


def heal(path: Path) -> None:
    """Cuts a last line that an interrupted run left half-written."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65_536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        file.truncate(end)
