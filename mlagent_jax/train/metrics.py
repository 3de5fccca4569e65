"""Training curves: one JSON object a line, and the same numbers for TensorBoard.

`metrics.jsonl` is the record that reports read; TensorBoard's event files are a
view of it. Numbers only: what is worth a sentence belongs in a log line.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import tensorboardX

from mlagent_jax.errors import DataError
from mlagent_jax.parallel import hosts

FILE_NAME = "metrics.jsonl"


class MetricsWriter:
    """Appends metrics of a stage; a resumed run continues its curves.

    Of several processes the first one writes; elsewhere every call does nothing.

    Lines of updates after the restored one are dropped (the resumed run writes them
    again, identically), as is a last line that a crash cut in half.

    Args:
      directory: folder of the stage; gets metrics.jsonl and events.* files.
      resume_step: update that the run resumes from; 0 starts anew.

    Raises:
      DataError: a line other than the last is not a metrics record.
    """

    def __init__(self, directory: Path, resume_step: int = 0) -> None:
        self._is_active = hosts.is_primary()
        if not self._is_active:
            return
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / FILE_NAME
        kept = [r for r in read_metrics(directory) if r["step"] <= resume_step]
        _write_atomically(self._path, "".join(_to_line(r) for r in kept))
        self._file = self._path.open("a", encoding="utf-8")
        # purge_step makes TensorBoard hide what an earlier process wrote later on.
        self._events = tensorboardX.SummaryWriter(
            str(directory), purge_step=resume_step + 1
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one record, {"step": step, **metrics}, and flushes it.

        Args:
          step: updates done so far; never below the last one written.
          metrics: name such as "train/loss" -> anything `float` accepts.
        """
        if not self._is_active:
            return
        values = {name: float(value) for name, value in metrics.items()}
        self._file.write(_to_line({"step": step, **values}))
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes both files."""
        if not self._is_active:
            return
        self._file.close()
        self._events.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def read_metrics(directory: Path) -> list[dict[str, float]]:
    """Returns the records of a stage, oldest first; none if it has not started.

    Numbers that JSON lacks (nan, inf) were written as null and come back as nan.

    Raises:
      DataError: a line other than the last is not a metrics record.
    """
    path = directory / FILE_NAME
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    *lines, unfinished = text.split("\n")  # a whole line ends with a line break
    del unfinished
    records: list[dict[str, float]] = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            records.append(
                {k: math.nan if v is None else v for k, v in values.items()}
                | {"step": int(values["step"])}
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}:{number}: not a metrics record ({error}); remove the line "
                "or the file to go on"
            ) from error
    return records


def _to_line(record: Mapping[str, float]) -> str:
    values = {k: v if math.isfinite(v) else None for k, v in record.items()}
    return json.dumps(values) + "\n"


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
