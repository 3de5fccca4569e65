"""JSONL files of one record or more an update: rollouts.jsonl and probes.jsonl.

Append-only while a run goes on. A run that starts again from a checkpoint first
drops what updates after it had written, since it writes those records again.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlagent_jax.errors import DataError


class UpdateLog:
    """Appends records that carry an "update" number.

    Args:
      path: the file; created if missing.
      first_update: records of this update and later ones are dropped, as is a last
        line that a crash cut in half.

    Raises:
      DataError: a line other than the last is no such record.
    """

    def __init__(self, path: Path, first_update: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._updates: set[int] = set()
        partial = path.with_name(path.name + ".partial")
        with partial.open("w", encoding="utf-8") as file:
            for update, line in _lines(path):
                if update < first_update:
                    file.write(line)
                    self._updates.add(update)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        self._file = path.open("ab", buffering=0)

    def has(self, update: int) -> bool:
        """Returns whether there are records of `update`."""
        return update in self._updates

    def append(self, update: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes all records of an update by one call to the system.

        A killed process therefore leaves all of them or none.
        """
        lines = [json.dumps({"update": update, **record}) + "\n" for record in records]
        self._file.write("".join(lines).encode())
        self._updates.add(update)

    def close(self) -> None:
        """Makes sure that everything is on the disk and closes the file."""
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> "UpdateLog":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


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
