"""The rules for task.toml: which keys it has, their types and values.

`env.task_folder` reads the file; here is only what it may say. All problems of a file
are listed at once, with the nearest valid name for one that is unknown.
"""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast, get_args

from mlagent_jax.env.metrics import (
    METRICS,
    MULTI_COLUMN_METRICS,
    SINGLE_COLUMN_METRICS,
)
from mlagent_jax.types import HumanScores, Limits, Split

MODALITIES: Final = ("image", "tabular", "text", "graph")

_Keys = Mapping[str, type]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Table:
    """Keys of one table: name -> type."""

    required: _Keys
    optional: _Keys = dataclasses.field(default_factory=dict[str, type])


_HUMAN_KEYS = {
    "from" if key == "provenance" else key: kind
    for key, kind in typing.get_type_hints(HumanScores).items()
}
# Path of a table in task.toml -> its keys; those of `real` only where it exists.
_TABLES: Mapping[str, _Table] = {
    "": _Table(
        required={
            "id": str,
            "version": int,
            "split": str,
            "modality": str,
            "title": str,
            "metric": str,
            "direction": str,
            "id_column": str,
            "target_columns": list,
            "seed": int,
            "scores": dict,
            "source": dict,
        },
        optional={
            "classes": list,
            "target_range": list,
            "optional_columns": list,
            "sample_submission": str,
            "deterministic": bool,
            "rows": dict,
            "limits": dict,
            "real": dict,
        },
    ),
    "scores": _Table(
        required={
            "baseline": float,
            "seed_mean": float,
            "seed_std": float,
            "best": float,
            "best_from": str,
            "stderr": float,
        }
    ),
    "source": _Table(required={"data": str, "license": str}),
    "rows": _Table(required={"train": int, "test": int}),
    "limits": _Table(required={}, optional=typing.get_type_hints(Limits)),
    "real": _Table(
        required={"license": str, "split": str, "best": float, "best_from": str},
        optional={
            "kaggle": str,
            "url": str,
            "notes": str,
            "rows": dict,
            "limits": dict,
            "human": dict,
        },
    ),
    "real.rows": _Table(required={"train": int, "test": int}),
    "real.limits": _Table(required={}, optional=typing.get_type_hints(Limits)),
    "real.human": _Table(required=_HUMAN_KEYS),
}


def toml_problems(table: Mapping[str, Any], folder_name: str) -> list[str]:
    """Returns what is wrong with a parsed task.toml, empty if nothing is."""
    problems: list[str] = []
    for path, keys in _TABLES.items():
        found = _table_at(table, path)
        if found is not None:
            problems += _key_problems(path, found, keys)
    return problems or _value_problems(table, folder_name)


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Returns the end of an error message: the nearest known name, or all of them."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, 1, 0.4)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(options)}"


def _table_at(table: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    """Returns the table at a dotted path; None where none is, which others report."""
    found: Any = table
    for key in path.split(".") if path else []:
        found = cast(dict[str, Any], found).get(key)
        if not isinstance(found, dict):
            return None
    return cast(dict[str, Any], found)


def _key_problems(path: str, values: dict[str, Any], keys: _Table) -> list[str]:
    """Returns unknown keys, missing keys and values of a wrong type of one table."""
    prefix = f"{path}." if path else ""
    known = {**keys.required, **keys.optional}
    problems = [
        f"task.toml: unknown key {prefix}{key}{nearest_name(key, known)}"
        for key in values
        if key not in known
    ]
    problems += [
        f"task.toml: missing key {prefix}{key}"
        for key in keys.required
        if key not in values
    ]
    for key, kind in known.items():
        value = values.get(key)
        is_ok = isinstance(value, (int, float) if kind is float else kind)
        is_flag = isinstance(value, bool) and kind is not bool
        if key in values and (not is_ok or is_flag):
            problems.append(
                f"task.toml: {prefix}{key} = {value!r}: expected {kind.__name__}"
            )
    return problems


def _value_problems(table: Mapping[str, Any], folder_name: str) -> list[str]:
    """Returns what is wrong with values whose types are right."""
    columns = [table["id_column"], *table["target_columns"]]
    columns += table.get("optional_columns", [])
    is_names = all(isinstance(c, str) and c for c in columns)
    target_range = table.get("target_range", [0, 1])
    is_range = len(target_range) == 2 and all(
        isinstance(x, int | float) for x in target_range
    )
    checks = [
        (table["id"] == folder_name, "id", f"the folder's name {folder_name!r}"),
        (table["version"] >= 1, "version", "at least 1"),
        (table["seed"] >= 0, "seed", "at least 0"),
        (table["split"] in get_args(Split), "split", f"one of {get_args(Split)}"),
        (table["modality"] in MODALITIES, "modality", f"one of {MODALITIES}"),
        (
            is_names and len(set(columns)) == len(columns) >= 2,
            "target_columns",
            "at least one name, none twice, none the id column's",
        ),
        (
            is_range and target_range[0] < target_range[1],
            "target_range",
            "[lowest, highest]",
        ),
        *_metric_checks(table),
        *_real_checks(table.get("real")),
    ]
    return [
        f"task.toml: {key} = {table.get(key)!r}: expected {expected}"
        for is_ok, key, expected in checks
        if not is_ok
    ]


def _metric_checks(table: Mapping[str, Any]) -> Sequence[tuple[bool, str, str]]:
    """Returns (is it right, key, expected) of what depends on the metric."""
    metric = METRICS.get(table["metric"])
    if metric is None:
        known = ", ".join(METRICS)
        near = nearest_name(table["metric"], METRICS)
        return [(False, "metric", f"one of {known}{near}")]
    classes = [str(c) for c in table.get("classes", [])]
    are_known = "classes" in table or "real" not in table
    if metric.kind in {"class", "ranking"}:
        is_ok = len(classes) >= 2 and len(set(classes)) == len(classes)
        is_ok = is_ok or not are_known  # then from_archive returns them
        class_check = (is_ok, "classes", f"two or more for metric {metric.name}")
    else:
        class_check = (not classes, "classes", f"none for metric {metric.name}")
    is_single = len(table["target_columns"]) == 1
    wrong = MULTI_COLUMN_METRICS if is_single else SINGLE_COLUMN_METRICS
    number = "two or more" if is_single else "one"
    scores = table["scores"]
    sign = 1.0 if metric.direction == "max" else -1.0
    is_better = sign * (scores["best"] - scores["baseline"]) > 0
    is_direction = table["direction"] == metric.direction
    return [
        class_check,
        (is_direction, "direction", f"{metric.direction!r} for metric {metric.name}"),
        (
            metric.name not in wrong,
            "target_columns",
            f"{number} for metric {metric.name}",
        ),
        (is_better, "scores", f"best better than baseline ({metric.direction})"),
    ]


def _real_checks(real: Mapping[str, Any] | None) -> Sequence[tuple[bool, str, str]]:
    """Returns (is it right, key, expected) of the table [real]."""
    if real is None:
        return []
    checks = [
        (("kaggle" in real) != ("url" in real), "real", "one of the keys kaggle, url"),
    ]
    human = real.get("human")
    if human is not None:
        is_explained = human["medals"] != bool(human["medals_note"])
        expected = "real.human.medals_note exactly where medals = false"
        checks.append((is_explained, "real", expected))
    return checks
