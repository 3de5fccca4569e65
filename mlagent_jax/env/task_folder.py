"""What a task folder declares: reading task.toml and checking it.

Not for the task's data, which `env.task` prepares. All that is wrong with a folder is
reported at once, with the nearest valid name for one that is unknown.
"""

import dataclasses
import difflib
import hashlib
import json
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast, get_args

from mlagent_jax.env.metrics import METRICS, SINGLE_COLUMN_METRICS, Metric
from mlagent_jax.errors import TaskError
from mlagent_jax.types import Limits, Split

ENTRY_SCRIPT: Final = "train.py"
MODALITIES: Final = ("image", "tabular", "text", "graph")
MAX_SUMMARY_WORDS: Final = 20

_FILES = ("task.toml", "description.md", ENTRY_SCRIPT, "prepare.py")
_REQUIRED_KEYS: Mapping[str, type] = {
    "id": str,
    "version": int,
    "split": str,
    "modality": str,
    "title": str,
    "metric": str,
    "id_column": str,
    "target_columns": list,
    "seed": int,
    "scores": dict,
    "source": dict,
}
_OPTIONAL_KEYS: Mapping[str, type] = {
    "classes": list,
    "target_range": list,
    "limits": dict,
}
_SCORE_KEYS: Mapping[str, type] = {
    "baseline": float,
    "seed_mean": float,
    "seed_std": float,
    "best": float,
    "best_from": str,
    "stderr": float,
}
_SOURCE_KEYS: Mapping[str, type] = {"data": str, "license": str}
_LIMIT_KEYS: Mapping[str, type] = typing.get_type_hints(Limits)
# What the prepared files depend on, besides prepare.py.
_DATA_KEYS = (
    "id",
    "version",
    "seed",
    "metric",
    "id_column",
    "target_columns",
    "classes",
    "target_range",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A checked task.toml with the texts of its folder; fields as in `types.Task`.

    Attributes:
      seed: of the generator that `prepare` gets.
      seed_mean: mean score of the starter over five seeds of its own randomness.
      seed_std: standard deviation over these seeds.
      stderr: largest bootstrap standard error of a score on one hidden part.
      best_from: how `best` was reached.
      data_hash: changes with anything that the prepared data depends on.
    """

    id: str
    version: int
    split: Split
    modality: str
    metric: Metric
    id_column: str
    target_columns: tuple[str, ...]
    classes: tuple[str, ...]
    target_range: tuple[float, float] | None
    seed: int
    baseline: float
    seed_mean: float
    seed_std: float
    best: float
    best_from: str
    stderr: float
    limits: Limits
    description: str
    starter: dict[str, str]
    data_hash: str


def read_spec(folder: Path) -> TaskSpec:
    """Returns what `folder` declares.

    Raises:
      TaskError: the folder breaks the contract of tasks/README.md; lists all problems.
    """
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise TaskError(f"{folder}: missing {', '.join(missing)} (see tasks/README.md)")
    try:
        texts = {name: (folder / name).read_text(encoding="utf-8") for name in _FILES}
        table = tomllib.loads(texts["task.toml"])
    except ValueError as error:  # No TOML, or not UTF-8.
        raise TaskError(f"{folder}: {error}") from error
    problems = [
        *_key_problems("", table, _REQUIRED_KEYS, _OPTIONAL_KEYS),
        *_key_problems("scores.", table.get("scores"), _SCORE_KEYS, {}),
        *_key_problems("source.", table.get("source"), _SOURCE_KEYS, {}),
        *_key_problems("limits.", table.get("limits", {}), {}, _LIMIT_KEYS),
    ]
    if not problems:
        problems = _value_problems(table, folder.resolve().name)
    num_words = len(texts["description.md"].partition("\n")[0].split())
    if not 1 <= num_words <= MAX_SUMMARY_WORDS:
        problems.append(
            f"description.md: first line has {num_words} words; expected one sentence "
            f"of at most {MAX_SUMMARY_WORDS}"
        )
    if problems:
        raise TaskError(f"{folder}: " + f"\n{folder}: ".join(problems))
    return _make_spec(table, texts)


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Returns the end of an error message: the nearest known name, or all of them."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, 1, 0.4)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(options)}"


def _make_spec(table: Mapping[str, Any], texts: Mapping[str, str]) -> TaskSpec:
    scores = table["scores"]
    target_range = table.get("target_range")
    data_values = json.dumps([table.get(key) for key in _DATA_KEYS])
    data_bytes = f"{data_values}\n{texts['prepare.py']}".encode()
    return TaskSpec(
        id=table["id"],
        version=table["version"],
        split=table["split"],
        modality=table["modality"],
        metric=METRICS[table["metric"]],
        id_column=table["id_column"],
        target_columns=tuple(table["target_columns"]),
        classes=tuple(str(c) for c in table.get("classes", ())),
        target_range=None
        if target_range is None
        else (float(target_range[0]), float(target_range[1])),
        seed=table["seed"],
        baseline=float(scores["baseline"]),
        seed_mean=float(scores["seed_mean"]),
        seed_std=float(scores["seed_std"]),
        best=float(scores["best"]),
        best_from=scores["best_from"],
        stderr=float(scores["stderr"]),
        limits=Limits(**table.get("limits", {})),
        description=texts["description.md"],
        starter={ENTRY_SCRIPT: texts[ENTRY_SCRIPT]},
        data_hash=hashlib.sha256(data_bytes).hexdigest(),
    )


def _key_problems(
    prefix: str,
    table: object,
    required: Mapping[str, type],
    optional: Mapping[str, type],
) -> list[str]:
    """Returns unknown keys, missing keys and values of a wrong type of one table."""
    if not isinstance(table, dict):
        return []  # Reported where the table itself is a value.
    values = cast(dict[str, Any], table)
    known = {**required, **optional}
    problems = [
        f"task.toml: unknown key {prefix}{key}{nearest_name(key, known)}"
        for key in values
        if key not in known
    ]
    problems += [
        f"task.toml: missing key {prefix}{key}" for key in required if key not in values
    ]
    for key, kind in known.items():
        value = values.get(key)
        is_ok = isinstance(value, (int, float) if kind is float else kind)
        if key in values and (not is_ok or isinstance(value, bool)):
            problems.append(
                f"task.toml: {prefix}{key} = {value!r}: expected {kind.__name__}"
            )
    return problems


def _value_problems(table: Mapping[str, Any], folder_name: str) -> list[str]:
    """Returns what is wrong with values whose types are right."""
    columns = [table["id_column"], *table["target_columns"]]
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
    if metric.kind in {"class", "ranking"}:
        is_ok = len(classes) >= 2 and len(set(classes)) == len(classes)
        class_check = (is_ok, "classes", f"two or more for metric {metric.name}")
    else:
        class_check = (not classes, "classes", f"none for metric {metric.name}")
    is_single = metric.name in SINGLE_COLUMN_METRICS
    is_ok = len(table["target_columns"]) == 1 or not is_single
    scores = table["scores"]
    sign = 1.0 if metric.direction == "max" else -1.0
    is_better = sign * (scores["best"] - scores["baseline"]) > 0
    return [
        class_check,
        (is_ok, "target_columns", f"one for metric {metric.name}"),
        (is_better, "scores", f"best better than baseline ({metric.direction})"),
    ]
