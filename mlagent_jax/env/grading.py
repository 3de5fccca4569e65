"""Scores a submission against the hidden labels, in our process, never in a script's.

Two steps with different owners: `read_submission` judges what the agent wrote and
raises a `SubmissionError` that helps it, made from the task's schema and the row ids
alone, never from label values; `grade` applies the metric to one part of the rows.
A score is always a finite number, so any exception from a metric is a bug of ours.
"""

# pandas describes its types only in part; strict mode would report nothing but that.
# pyright: standard

import csv
import functools
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlagent_jax.env.metrics import METRICS, Array, Kind, Metric
from mlagent_jax.env.task_data import PART_COLUMN
from mlagent_jax.errors import SubmissionError, TaskError
from mlagent_jax.types import Part, Task

__all__ = [
    "METRICS",
    "PART_COLUMN",
    "Metric",
    "grade",
    "read_labels",
    "read_submission",
    "score_rows",
]

MAX_SUBMISSION_BYTES = 16 << 20
# Of tasks with millions of hidden rows: this many times the sample file's size.
_MAX_SAMPLES = 8
RANKING_LENGTH = 5
# Larger predictions only serve to overflow a squared error.
_MAX_NUMBER = 1e12
_NUM_EXAMPLES = 3
_BOOLEANS = {
    "False": ("false", "FALSE", "0", "0.0"),
    "True": ("true", "TRUE", "1", "1.0"),
}
_MISSING = frozenset({"nan", "na", "n/a", "none", "null", "<na>"})


def grade(task: Task, submission: bytes, part: Part) -> float:
    """Returns the score of `submission` on one part of the hidden rows.

    Args:
      task: what is predicted and how it is scored.
      submission: content of submission.csv.
      part: "selection" for feedback and reward, "test" for reports only.

    Raises:
      SubmissionError: the file cannot be scored; the text is the agent's feedback.
    """
    predictions = read_submission(submission, task)
    labels = read_labels(task)
    rows = np.flatnonzero(labels[PART_COLUMN] == part)
    return score_rows(task, labels.take(rows), predictions.take(rows))


def score_rows(task: Task, labels: pd.DataFrame, predictions: pd.DataFrame) -> float:
    """Returns the metric over two frames that hold the same rows in the same order.

    Raises:
      ValueError: the metric came out as NaN or infinite; a bug of ours, never a score.
    """
    columns = list(task.target_columns)
    truth, predicted = labels[columns].to_numpy(), predictions[columns].to_numpy()
    score = METRICS[task.metric].function(truth, predicted)
    if not math.isfinite(score):
        raise ValueError(f"metric {task.metric} of task {task.id} gave {score}")
    return score


def read_labels(task: Task) -> pd.DataFrame:
    """Returns the hidden labels: id and part as strings, targets as the metric's kind.

    The frame is shared between calls and must not be changed.

    Raises:
      TaskError: the file is missing or broken.
    """
    path = task.private_dir / "labels.csv"
    kind = METRICS[task.metric].kind
    file_hash = task.file_hashes.get("private/labels.csv", "")
    return _read_labels(path, file_hash, task.id_column, task.target_columns, kind)


@functools.lru_cache(maxsize=64)
def _read_labels(
    path: Path,
    file_hash: str,
    id_column: str,
    target_columns: tuple[str, ...],
    kind: Kind,
) -> pd.DataFrame:
    del file_hash  # Only tells apart different contents of one path in the cache.
    try:
        labels = pd.read_csv(path, dtype=str, keep_default_na=False)
        if kind not in {"class", "ranking"}:
            types = dict.fromkeys(target_columns, np.float64)
            labels = labels.astype(types)
        return labels.filter([id_column, *target_columns, PART_COLUMN])
    except (OSError, ValueError, KeyError) as error:
        raise TaskError(
            f"{path}: cannot read the hidden labels ({error}); "
            "remove the prepared task and run launch.prepare again"
        ) from error


def read_submission(data: bytes, task: Task) -> pd.DataFrame:
    """Returns the agent's predictions, one row a hidden row, in the labels' order.

    Args:
      data: content of submission.csv.
      task: its schema.

    Raises:
      SubmissionError: with reason `empty_file`, `file_too_large`, `not_text`,
        `not_csv`, `wrong_columns`, `duplicate_ids`, `unknown_ids`, `missing_ids`,
        `missing_values`, `not_numeric`, `out_of_range`, `unknown_class` or
        `bad_ranking`.
    """
    header, rows = _read_table(data, _max_bytes(task))
    expected = [task.id_column, *task.target_columns]
    _check_columns(header, expected, task.optional_columns)
    order = _row_order([row[header.index(task.id_column)] for row in rows], task)
    columns: dict[str, Any] = {task.id_column: read_labels(task)[task.id_column]}
    kind = METRICS[task.metric].kind
    for name in task.target_columns:
        position = header.index(name)
        values = [rows[i][position].strip() for i in order]
        if "" in values:
            raise SubmissionError("missing_values", f"column {name!r} has empty cells.")
        if kind == "class":
            columns[name] = _parse_classes(values, name, task.classes)
        elif kind == "ranking":
            columns[name] = _parse_rankings(values, name, task.classes)
        else:
            columns[name] = _parse_numbers(values, name, _number_range(kind, task))
    predictions = pd.DataFrame(columns)
    if kind == "probability" and task.metric == "log_loss" and len(expected) > 2:
        _check_row_sums(predictions, task)
    return predictions


def _max_bytes(task: Task) -> int:
    """Returns how large a submission may be."""
    sample = task.public_dir / task.sample_file
    num_bytes = sample.stat().st_size if sample.is_file() else 0
    return max(MAX_SUBMISSION_BYTES, _MAX_SAMPLES * num_bytes)


def _read_table(data: bytes, max_bytes: int) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of a CSV file, all rows as long as the header.

    Raises:
      SubmissionError: the bytes are no such file.
    """
    if len(data) > max_bytes:
        raise SubmissionError(
            "file_too_large",
            f"submission.csv has {len(data)} bytes; at most {max_bytes} are read.",
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SubmissionError(
            "not_text", "submission.csv is not UTF-8 text; write it with to_csv."
        ) from None
    try:
        rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    except csv.Error as error:
        raise SubmissionError("not_csv", f"submission.csv: {error}.") from None
    if not rows:
        raise SubmissionError("empty_file", "submission.csv is empty.")
    header = [name.strip() for name in rows[0]]
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise SubmissionError(
                "not_csv",
                f"submission.csv: row {number} has {len(row)} cells, "
                f"the header has {len(header)}.",
            )
    return header, rows[1:]


def _check_columns(
    header: Sequence[str], expected: Sequence[str], optional: Sequence[str]
) -> None:
    given = [name for name in header if name not in optional]
    if sorted(given) == sorted(expected):
        return
    missing = [name for name in expected if name not in given]
    extra = [name for name in given if name not in expected]
    problems = [
        f"missing {_examples(missing)}" if missing else "",
        f"unexpected {_examples(extra)}" if extra else "",
        "" if missing or extra else "a column occurs twice",
    ]
    hint = " Write it with index=False?" if "" in extra or "Unnamed: 0" in extra else ""
    raise SubmissionError(
        "wrong_columns",
        f"columns must be {_examples(expected, 12)}: "
        f"{', '.join(p for p in problems if p)}.{hint}",
    )


def _row_order(ids: Sequence[str], task: Task) -> Sequence[int]:
    """Returns for each hidden row, in the labels' order, its row in the submission.

    Raises:
      SubmissionError: an id is missing, unknown or occurs twice.
    """
    expected = read_labels(task)[task.id_column].tolist()
    if ids == expected:
        return range(len(ids))  # as most scripts write them
    known = set(expected)
    row_of: dict[str, int] = {}
    unknown: list[str] = []
    for number, text in enumerate(ids):
        # An id may end in a space or line break itself: a comment that is its own.
        row_id = text if text in known else text.strip()
        if row_id in row_of:
            raise SubmissionError(
                "duplicate_ids", f"{task.id_column} {row_id[:40]!r} occurs twice."
            )
        if row_id not in known:
            unknown.append(row_id)
        row_of[row_id] = number
    counts = f"{len(ids)} rows, expected {len(expected)}"
    if unknown:
        raise SubmissionError(
            "unknown_ids",
            f"{len(unknown)} values of {task.id_column!r} are not in data/test.csv, "
            f"e.g. {_examples(unknown)} ({counts}).",
        )
    missing = [row_id for row_id in expected if row_id not in row_of]
    if missing:
        raise SubmissionError(
            "missing_ids",
            f"{len(missing)} rows of data/test.csv are missing, "
            f"e.g. {task.id_column} {_examples(missing)} ({counts}).",
        )
    return [row_of[row_id] for row_id in expected]


def _parse_classes(
    values: Sequence[str], name: str, classes: Sequence[str]
) -> list[str]:
    """Returns the values as declared classes.

    3.0 counts as the class 3; where the classes are True and False, so do 1 and 0.

    Raises:
      SubmissionError: a value is no class.
    """
    aliases = {c: c for c in classes}
    aliases |= {f"{c}.0": c for c in classes if c.lstrip("-").isdigit()}
    if set(classes) == set(_BOOLEANS):
        aliases |= {alias: c for c, names in _BOOLEANS.items() for alias in names}
    unknown = sorted({v for v in values if v not in aliases})
    if unknown:
        raise SubmissionError(
            "unknown_class",
            f"column {name!r} holds {_examples(unknown)}; "
            f"allowed are {_examples(classes, 12)}.",
        )
    return [aliases[v] for v in values]


def _parse_rankings(
    values: Sequence[str], name: str, classes: Sequence[str]
) -> list[str]:
    known = set(classes)
    for value in values:
        guesses = value.split()
        unknown = [guess for guess in guesses if guess not in known]
        if len(guesses) > RANKING_LENGTH or len(set(guesses)) != len(guesses):
            problem = f"{value[:80]!r}"
        elif unknown:
            problem = f"{unknown[0][:40]!r}, which is no class of the training data"
        else:
            continue
        raise SubmissionError(
            "bad_ranking",
            f"column {name!r} must hold up to {RANKING_LENGTH} different classes "
            f"separated by spaces; it holds {problem}.",
        )
    return [" ".join(value.split()) for value in values]


def _parse_numbers(
    values: Sequence[str], name: str, number_range: tuple[float, float]
) -> Array:
    """Returns the values as float64 within `number_range`.

    Raises:
      SubmissionError: a value is missing, no number or outside.
    """
    numbers = np.array([_to_float(v) for v in values])
    bad = [v for v, x in zip(values, numbers, strict=True) if math.isnan(x)]
    if any(v.lower() in _MISSING for v in bad):
        raise SubmissionError(
            "missing_values", f"column {name!r} has {len(bad)} missing values (NaN)."
        )
    if bad:
        raise SubmissionError(
            "not_numeric", f"column {name!r} must hold numbers, not {_examples(bad)}."
        )
    low, high = number_range
    outside = [v for v, x in zip(values, numbers, strict=True) if not low <= x <= high]
    if outside:
        raise SubmissionError(
            "out_of_range",
            f"column {name!r} must be in [{low:g}, {high:g}]; "
            f"{len(outside)} values are not, e.g. {_examples(outside)}.",
        )
    return numbers


def _to_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _number_range(kind: Kind, task: Task) -> tuple[float, float]:
    if task.target_range is not None:
        return task.target_range
    if kind == "probability":
        return 0.0, 1.0
    return (0.0 if kind == "non_negative" else -_MAX_NUMBER), _MAX_NUMBER


def _check_row_sums(predictions: pd.DataFrame, task: Task) -> None:
    sums = predictions[list(task.target_columns)].sum(axis=1)
    empty = predictions.loc[sums <= 0, task.id_column].tolist()
    if empty:
        raise SubmissionError(
            "out_of_range",
            f"{len(empty)} rows have probability 0 for every class, "
            f"e.g. {task.id_column} {_examples(empty)}.",
        )


def _examples(values: Sequence[str], num: int = _NUM_EXAMPLES) -> str:
    shown = ", ".join(repr(str(v)[:40]) for v in values[:num])
    return f"{shown}, ..." if len(values) > num else shown
