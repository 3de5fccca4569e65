"""What looks like tampering in a submission: copies instead of predictions.

Nothing here changes a score. A copy of the sample file is worth what the sample is
worth; the event says that nobody predicted anything.
"""

import csv
import functools
import io
from pathlib import Path

from mlagent_jax.types import Task

TRAIN_FILE = "train.csv"
_MAX_COMPARED_BYTES = 8 << 20
_MIN_ROWS = 8

SAMPLE_COPY = "submission_is_sample"
LABEL_COPY = "submission_copies_training_labels"


def submission_events(task: Task, submission: bytes) -> tuple[str, ...]:
    """Returns what is suspicious about a submission that can be scored.

    `submission_is_sample`: it says what the sample file says, in whatever order.
    `submission_copies_training_labels`: its predictions are the labels of the training
    rows, in the order of the training file. Large files are not compared.
    """
    if len(submission) > _MAX_COMPARED_BYTES:
        return ()
    rows = _read_rows(submission)
    events: list[str] = []
    sample = _load(task.public_dir / task.sample_file)
    if sample and sorted(rows) == list(sample):
        events.append(SAMPLE_COPY)
    if _copies_labels(task, rows):
        events.append(LABEL_COPY)
    return tuple(events)


def _copies_labels(task: Task, rows: list[tuple[str, ...]]) -> bool:
    """True if the predictions are the first training labels, and not all the same."""
    header, predicted = (rows[0], rows[1:]) if rows else ((), [])
    names = [name for name in task.target_columns if name in header]
    if len(names) != len(task.target_columns) or len(predicted) < _MIN_ROWS:
        return False
    labels = _load_labels(task.public_dir / TRAIN_FILE, task.target_columns)
    columns = [header.index(name) for name in names]
    guesses = [tuple(row[c] for c in columns) for row in predicted]
    num = min(len(labels), len(guesses))
    if num < _MIN_ROWS or len(set(guesses)) == 1:
        return False
    return guesses[:num] == list(labels[:num])


@functools.lru_cache(maxsize=64)
def _load(path: Path) -> tuple[tuple[str, ...], ...]:
    """Returns the sorted rows of a public file, () if it is missing or large."""
    if not path.is_file() or path.stat().st_size > _MAX_COMPARED_BYTES:
        return ()
    return tuple(sorted(_read_rows(path.read_bytes())))


@functools.lru_cache(maxsize=64)
def _load_labels(path: Path, names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    if not path.is_file() or path.stat().st_size > _MAX_COMPARED_BYTES:
        return ()
    rows = _read_rows(path.read_bytes())
    if not rows or not set(names) <= set(rows[0]):
        return ()
    columns = [rows[0].index(name) for name in names]
    return tuple(tuple(row[c] for c in columns) for row in rows[1:])


def _read_rows(data: bytes) -> list[tuple[str, ...]]:
    """Returns the rows of a CSV file, cells stripped; ragged rows are left out."""
    text = io.StringIO(data.decode(errors="replace"), newline="")
    try:
        rows = [tuple(c.strip() for c in row) for row in csv.reader(text) if row]
    except csv.Error:
        return []
    width = len(rows[0]) if rows else 0
    return [row for row in rows if len(row) == width]
