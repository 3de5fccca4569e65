"""Makes a task folder from a CSV file and the name of a column to predict."""

import dataclasses
import hashlib
import re
import shutil
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from launch.tasks import scaffold_texts as texts
from launch.tasks.csv_table import (
    is_day_first,
    parse_numbers,
    read_table,
    require_column,
)
from mlagent_jax.env.metrics import METRICS, Metric
from mlagent_jax.env.task_data import PART_COLUMN, csv_bytes
from mlagent_jax.env.task_rules import nearest_name
from mlagent_jax.errors import TaskError

MIN_ROWS = 40
HIDDEN_FRAC = 0.4
MAX_HIDDEN_ROWS = 20_000
# Whole numbers are classes up to this many different ones, texts up to the other.
_MAX_NUMBER_CLASSES = 12
_MAX_CLASSES = 200
_MAX_CLASS_FRAC = 0.5
# A class this common makes accuracy say little.
_COMMON_FRAC = 0.8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """The column to predict.

    Attributes:
      values: as they will stand in the data; no gaps.
      metric: what scores it.
      classes: its labels, empty for numbers.
    """

    values: pd.Series
    metric: Metric
    classes: tuple[str, ...]


def make_task_folder(
    folder: Path,
    *,
    csv: Path,
    target: str,
    id_column: str | None = None,
    metric: str | None = None,
    encoding: str | None = None,
) -> Path:
    """Writes a task folder that keeps the contract, its scores not measured yet.

    Args:
      folder: must not exist; its name becomes the task's.
      csv: the table.
      target: name of the column to predict.
      id_column: column that names rows; None looks for one. It is left out.
      metric: instead of the one that fits the column.
      encoding: of the file; None guesses.

    Returns:
      The folder.

    Raises:
      TaskError: no task can be made of this; the text says why and what to do.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", folder.name):
        raise TaskError(f"name {folder.name!r}: use small letters, digits, - and _")
    if folder.exists():
        raise TaskError(f"{folder}: exists already; choose another name or remove it")
    table = read_table(csv, encoding, id_column)
    require_column(table.cells, target, "target")
    notes = list(table.notes)
    rows = table.cells.dropna(subset=[target]).reset_index(drop=True)
    if num_gaps := len(table.cells) - len(rows):
        notes.append(f"left out {num_gaps} rows without {target!r}")
    if len(rows) < MIN_ROWS:
        raise TaskError(f"{csv}: {len(rows)} rows with a target; expected {MIN_ROWS}")
    found = _find_target(cast(pd.Series, rows[target]), metric)
    features = [
        c for c in table.of_kind("number", "date", "group", "text") if c != target
    ]
    if not features:
        raise TaskError(f"{csv}: no column to predict {target!r} from: {table.kinds}")
    left_out = [c for c in table.of_kind("constant", "id") if c != target]
    if left_out:
        notes.append(f"left out columns that tell nothing: {left_out}")
    data = rows.filter(features).assign(**{target: found.values})
    # Names that the prepared files use themselves.
    renamed = {c: f"{c}_" for c in (PART_COLUMN,) if c in data.columns}
    data = data.rename(columns=renamed)
    kinds = {renamed.get(c, c): table.kinds[c] for c in features}
    _write_folder(folder, data, renamed.get(target, target), found, kinds)
    for note in notes:
        print(f"{csv}: {note}")
    return folder


def _find_target(values: pd.Series, wanted: str | None) -> Target:
    """Returns the target with a metric that fits it.

    Raises:
      TaskError: none does, or not the wanted one.
    """
    if wanted is not None and wanted not in METRICS:
        raise TaskError(
            f"--metric={wanted}: no such metric{nearest_name(wanted, METRICS)}"
        )
    numbers = parse_numbers(values)
    classes = _find_classes(values, numbers)
    if wanted is None and numbers is None and classes is None:
        raise TaskError(_describe_mix(values))
    name = wanted or _choose_metric(classes)
    metric = METRICS[name]
    is_binary = metric.name in {"roc_auc", "log_loss"}
    if metric.kind in {"number", "non_negative"}:
        if numbers is None:
            raise TaskError(
                f"metric {name} needs numbers, e.g. not {values.iloc[0]!r:.40}"
            )
        if not np.isfinite(numbers).all():
            raise TaskError("the target holds infinite numbers; remove these rows")
        return Target(values=numbers, metric=metric, classes=())
    if metric.kind == "ranking" or (metric.kind == "probability" and not is_binary):
        raise TaskError(f"metric {name}: `new` makes tasks of one number or one class")
    if classes is None or len(set(classes)) < 2:
        raise TaskError(_describe_mix(values))
    labels = tuple(sorted(set(classes), key=_class_key))
    if not is_binary:
        return Target(values=classes, metric=metric, classes=labels)
    if len(labels) != 2:
        raise TaskError(f"metric {name} needs two classes, the target has {labels[:8]}")
    return Target(values=(classes == labels[1]).astype(int), metric=metric, classes=())


def _describe_mix(values: pd.Series) -> str:
    return (
        f"the target has {values.nunique()} different values in {len(values)} rows: "
        "neither numbers nor classes (two or more, each several times)"
    )


def _find_classes(values: pd.Series, numbers: pd.Series | None) -> pd.Series | None:
    """Returns the values as labels that read back as they are; None if too many."""
    if numbers is not None:
        is_whole = np.isfinite(numbers).all() and (numbers % 1 == 0).all()
        if not is_whole or numbers.nunique() > _MAX_NUMBER_CLASSES:
            return None
        return numbers.astype(np.int64).astype(str)
    labels = values.str.split().str.join(" ")
    if set(labels.str.lower()) <= {"true", "false"}:
        return labels.str.capitalize()
    if labels.nunique() > min(_MAX_CLASSES, _MAX_CLASS_FRAC * len(labels)):
        return None
    return labels


def _choose_metric(classes: pd.Series | None) -> str:
    if classes is None:
        return "rmse"
    most = classes.value_counts(normalize=True).iloc[0]
    return "f1_macro" if most > _COMMON_FRAC else "accuracy"


def _class_key(label: str) -> tuple[int, str]:
    return (int(label), "") if label.lstrip("-").isdigit() else (0, label)


def _write_folder(
    folder: Path, data: pd.DataFrame, target: str, found: Target, kinds: dict[str, str]
) -> None:
    num_hidden = min(round(HIDDEN_FRAC * len(data)), MAX_HIDDEN_ROWS)
    id_column = "row_id"
    while id_column in data.columns:
        id_column += "_"
    content = csv_bytes(data)
    context = texts.Context(
        name=folder.name,
        target=target,
        id_column=id_column,
        metric=found.metric,
        classes=found.classes,
        kinds=kinds,
        day_first=[
            name
            for name, kind in kinds.items()
            if kind == "date" and is_day_first(cast(pd.Series, data[name]))
        ],
        gaps={str(c): float(f) for c, f in data.isna().mean().items()},
        num_train=len(data) - num_hidden,
        num_hidden=num_hidden,
        data_hash=hashlib.sha256(content).hexdigest(),
    )
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "data.csv").write_bytes(content)
    for name, text in texts.render(context).items():
        (partial / name).write_text(text, encoding="utf-8")
    partial.rename(folder)
