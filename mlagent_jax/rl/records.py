"""JSONL files of one record or more an update: rollouts.jsonl and probes.jsonl.

Append-only while a run goes on. A run that starts again from a checkpoint first
drops what updates after it had written, since it writes those records again.
"""

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlagent_jax.errors import DataError
from mlagent_jax.parallel import hosts


class UpdateLog:
    """Appends records that carry an "update" number.

    Of several processes the first one writes; all know which updates are there.

    Args:
      path: the file; created if missing.
      first_update: records of this update and later ones are dropped, as is a last
        line that a crash cut in half.

    Raises:
      DataError: a line other than the last is no such record.
    """

    def __init__(self, path: Path, first_update: int = 0) -> None:
        self._updates = {n for n, _ in _lines(path) if n < first_update}
        self._file: io.FileIO | None = None
        hosts.barrier(f"read {path.name}")
        if hosts.is_primary():
            _drop_from(path, first_update)
            self._file = path.open("ab", buffering=0)
        hosts.barrier(f"opened {path.name}")

    def has(self, update: int) -> bool:
        """Returns whether there are records of `update`."""
        return update in self._updates

    def append(self, update: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes all records of an update by one call to the system.

        A killed process therefore leaves all of them or none.
        """
        self._updates.add(update)
        if self._file is None:
            return
        lines = [json.dumps({"update": update, **record}) + "\n" for record in records]
        self._file.write("".join(lines).encode())

    def close(self) -> None:
        """Makes sure that everything is on the disk and closes the file."""
        if self._file is None:
            return
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> "UpdateLog":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _drop_from(path: Path, first_update: int) -> None:
    """Rewrites the file without the records of `first_update` and later ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(line for n, line in _lines(path) if n < first_update)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield int(json.loads(line)["update"]), line
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}:{number}: not a record of an update ({error}); remove "
                    "the line to go on"
                ) from error
