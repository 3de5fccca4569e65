"""Scores a submission against the hidden labels, in our process, never in a script's.

Two steps with different owners: `read_submission` judges what the agent wrote and
raises a `SubmissionError` that helps it, made from the task's schema and the row ids
alone, never from label values; `grade` applies the metric to one part of the rows.
A score is always a finite number, so any exception from a metric is a bug of ours.
"""

# pandas, scipy and scikit-learn describe their types only in part; strict mode would
# report nothing but that.
# pyright: standard

import csv
import dataclasses
import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from sklearn import metrics

from mlagent_jax.errors import SubmissionError, TaskError
from mlagent_jax.types import Direction, Part, Task

Kind = Literal["class", "probability", "number", "non_negative", "ranking"]
Array = npt.NDArray[Any]

PART_COLUMN = "part"
MAX_SUBMISSION_BYTES = 16 << 20
RANKING_LENGTH = 5
# Larger predictions only serve to overflow a squared error.
_MAX_NUMBER = 1e12
_NUM_EXAMPLES = 3
_MISSING = frozenset({"nan", "na", "n/a", "none", "null", "<na>"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A score of predictions, with its direction stated.

    Attributes:
      name: as in task.toml.
      direction: "max" if a higher score is better.
      kind: what a target column holds: "class" one of the task's classes,
        "probability" a number in [0, 1], "number", "non_negative", or "ranking": up
        to five classes separated by spaces, best first.
      perfect: score of the labels themselves.
      function: (truth, predictions), both (rows, target columns), to the score;
        strings for kinds "class" and "ranking", float64 for the others.
    """

    name: str
    direction: Direction
    kind: Kind
    perfect: float
    function: Callable[[Array, Array], float]


def _accuracy(truth: Array, predicted: Array) -> float:
    return float(metrics.accuracy_score(truth[:, 0], predicted[:, 0]))


def _f1_macro(truth: Array, predicted: Array) -> float:
    score = metrics.f1_score(
        truth[:, 0],
        predicted[:, 0],
        average="macro",
        # A class that nobody predicts counts as 0, without a warning.
        zero_division=cast(Any, 0),
    )
    return float(score)


def _qwk(truth: Array, predicted: Array) -> float:
    """Returns Cohen's kappa with quadratic weights; classes are integers."""
    return float(
        metrics.cohen_kappa_score(
            truth[:, 0].astype(np.int64),
            predicted[:, 0].astype(np.int64),
            weights="quadratic",
        )
    )


def _mean_column_roc_auc(truth: Array, predicted: Array) -> float:
    columns = range(truth.shape[1])
    scores = [metrics.roc_auc_score(truth[:, i], predicted[:, i]) for i in columns]
    return float(np.mean(scores))


def _log_loss(truth: Array, predicted: Array) -> float:
    """Returns the mean negative log-likelihood, base e; rows need not sum to 1."""
    if truth.shape[1] == 1:
        return float(metrics.log_loss(truth[:, 0], predicted[:, 0], labels=[0.0, 1.0]))
    classes = np.arange(truth.shape[1])
    rows = predicted / predicted.sum(axis=1, keepdims=True)
    return float(metrics.log_loss(truth.argmax(axis=1), rows, labels=classes))


def _mae(truth: Array, predicted: Array) -> float:
    return float(metrics.mean_absolute_error(truth, predicted))


def _rmse(truth: Array, predicted: Array) -> float:
    """Returns the root of the mean squared error over rows and columns together."""
    return math.sqrt(metrics.mean_squared_error(truth, predicted))


def _mcrmse(truth: Array, predicted: Array) -> float:
    """Returns the mean over columns of each column's root mean squared error."""
    return float(metrics.root_mean_squared_error(truth, predicted))


def _rmsle(truth: Array, predicted: Array) -> float:
    """Returns the mean over columns of the RMSE between log(1 + value)s."""
    return _mcrmse(np.log1p(truth), np.log1p(predicted))


def _pearson(truth: Array, predicted: Array) -> float:
    """Returns Pearson's r; 0.0 where constant predictions leave it undefined."""
    # The correlation does not depend on scale, but huge values overflow it.
    spread = np.ptp(predicted[:, 0])
    if spread == 0:
        return 0.0
    scaled = (predicted[:, 0] - predicted[:, 0].min()) / spread
    return float(cast(Any, stats.pearsonr(truth[:, 0], scaled)).statistic)


def _map_at_5(truth: Array, predicted: Array) -> float:
    """Returns the mean of 1/position of the true class among five, 0 if absent."""
    total = 0.0
    for label, ranking in zip(truth[:, 0], predicted[:, 0], strict=True):
        guesses = str(ranking).split()
        if label in guesses:
            total += 1 / (1 + guesses.index(label))
    return total / len(truth)


def _metric(
    name: str,
    direction: Direction,
    kind: Kind,
    function: Callable[[Array, Array], float],
) -> Metric:
    perfect = 1.0 if direction == "max" else 0.0
    return Metric(
        name=name, direction=direction, kind=kind, perfect=perfect, function=function
    )


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            _metric("accuracy", "max", "class", _accuracy),
            _metric("f1_macro", "max", "class", _f1_macro),
            _metric("qwk", "max", "class", _qwk),
            _metric("roc_auc", "max", "probability", _mean_column_roc_auc),
            _metric("mean_column_roc_auc", "max", "probability", _mean_column_roc_auc),
            _metric("log_loss", "min", "probability", _log_loss),
            _metric("mae", "min", "number", _mae),
            _metric("rmse", "min", "number", _rmse),
            _metric("mcrmse", "min", "number", _mcrmse),
            _metric("rmsle", "min", "non_negative", _rmsle),
            _metric("pearson", "max", "number", _pearson),
            _metric("map_at_5", "max", "ranking", _map_at_5),
        )
    }
)
"""Every metric a task may name."""

SINGLE_COLUMN_METRICS = frozenset(
    {"accuracy", "f1_macro", "qwk", "roc_auc", "pearson", "map_at_5"}
)


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
    header, rows = _read_table(data)
    expected = [task.id_column, *task.target_columns]
    _check_columns(header, expected)
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


def _read_table(data: bytes) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of a CSV file, all rows as long as the header.

    Raises:
      SubmissionError: the bytes are no such file.
    """
    if len(data) > MAX_SUBMISSION_BYTES:
        raise SubmissionError(
            "file_too_large",
            f"submission.csv has {len(data)} bytes; at most {MAX_SUBMISSION_BYTES} "
            "are read.",
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


def _check_columns(header: Sequence[str], expected: Sequence[str]) -> None:
    if sorted(header) == sorted(expected):
        return
    missing = [name for name in expected if name not in header]
    extra = [name for name in header if name not in expected]
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


def _row_order(ids: Sequence[str], task: Task) -> list[int]:
    """Returns for each hidden row, in the labels' order, its row in the submission.

    Raises:
      SubmissionError: an id is missing, unknown or occurs twice.
    """
    expected = read_labels(task)[task.id_column].tolist()
    known = set(expected)
    row_of: dict[str, int] = {}
    unknown: list[str] = []
    for number, text in enumerate(ids):
        row_id = text.strip()
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
    """Returns the values as declared classes; 3.0 counts as the class 3.

    Raises:
      SubmissionError: a value is no class.
    """
    aliases = {c: c for c in classes}
    aliases |= {f"{c}.0": c for c in classes if c.lstrip("-").isdigit()}
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
