"""Task folders: reading them, preparing their data once, loading the result.

A folder under tasks/ holds a declaration and a pure function of a seed; `prepare_task`
turns them into files, and `load_task` into the `Task` that everything else uses. The
contract for someone who adds a task stands in tasks/README.md; whatever breaks it is
reported as one `TaskError` that lists all problems. Here, and not in the tasks' own
code, labels are cut off the hidden rows, rows are shuffled and ids are numbered anew,
so that no task can leak labels by order or by name.
"""

import dataclasses
import difflib
import hashlib
import importlib.util
import json
import os
import shutil
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pandas as pd

from mlagent_jax.config import RunConfig
from mlagent_jax.env import grading
from mlagent_jax.errors import ConfigError, SubmissionError, TaskError
from mlagent_jax.types import Limits, Part, Split, Task

ENTRY_SCRIPT = "train.py"
MODALITIES = ("image", "tabular", "text", "graph")
MAX_SUMMARY_WORDS = 20
_FOLDER_FILES = ("task.toml", "description.md", ENTRY_SCRIPT, "prepare.py")
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
    "baseline_std": float,
    "best": float,
    "best_from": str,
    "stderr": float,
}
_SOURCE_KEYS: Mapping[str, type] = {"data": str, "license": str}
_LIMIT_KEYS: Mapping[str, type] = {
    f.name: type(f.default) for f in dataclasses.fields(Limits)
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedData:
    """What a task's `prepare` returns.

    Attributes:
      train: rows that the agent sees, labels included.
      test: hidden rows: the feature columns of `train` and the target columns.
        Targets are cut off before the agent sees them. Half of the rows, at
        random, become the selection part, the rest the test part.
      links: further public tables that refer to rows, file name -> table (a graph's
        edges). All columns hold row positions: 0 is the first row of `train`, and
        the rows of `test` count on after them. Written with ids instead.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    links: Mapping[str, pd.DataFrame] = dataclasses.field(
        default_factory=dict[str, pd.DataFrame]
    )


Prepare = Callable[[np.random.Generator], PreparedData]


def prepare_task(folder: Path, prepared: Path) -> Task:
    """Writes the data of a task, or checks what is there, and returns the task.

    The files appear all at once, by a rename, so a reader never sees a part of them.

    Args:
      folder: task folder, e.g. tasks/digits.
      prepared: where `public/`, `private/` and task.json belong.

    Raises:
      TaskError: the folder breaks the contract, or `prepared` holds data that was
        changed since, or made from another version of the folder.
    """
    if not (prepared / "task.json").is_file():
        spec = _read_spec(folder)
        files = _data_files(spec, _load_prepare(folder))
        _write_prepared(spec, files, prepared)
    task = load_task(folder, prepared)
    _check_labels(task)
    return task


def rebuild_hashes(folder: Path) -> dict[str, str]:
    """Returns the hashes that the prepared files have when they are made anew.

    Raises:
      TaskError: the folder breaks the contract.
    """
    files = _data_files(_read_spec(folder), _load_prepare(folder))
    return {name: _sha256(data) for name, data in sorted(files.items())}


def load_task(folder: Path, prepared: Path) -> Task:
    """Returns the task of a folder whose data was prepared before.

    Args:
      folder: task folder, e.g. tasks/digits.
      prepared: where `prepare_task` wrote.

    Raises:
      TaskError: the folder breaks the contract, or the prepared data is missing,
        changed, or made from another version of the folder; lists all problems.
    """
    spec = _read_spec(folder)
    hashes = _verify_prepared(spec, prepared)
    return Task(
        id=spec.id,
        version=spec.version,
        split=spec.split,
        modality=spec.modality,
        description=(folder / "description.md").read_text(encoding="utf-8"),
        metric=spec.metric,
        direction=grading.METRICS[spec.metric].direction,
        id_column=spec.id_column,
        target_columns=spec.target_columns,
        classes=spec.classes,
        target_range=spec.target_range,
        starter={ENTRY_SCRIPT: (folder / ENTRY_SCRIPT).read_text(encoding="utf-8")},
        entry_script=ENTRY_SCRIPT,
        baseline=spec.baseline,
        baseline_std=spec.baseline_std,
        best=spec.best,
        limits=spec.limits,
        public_dir=(prepared / "public").resolve(),
        private_dir=(prepared / "private").resolve(),
        file_hashes=hashes,
    )


def load_tasks(config: RunConfig, workdir: Path) -> dict[str, Task]:
    """Returns the run's tasks by id, held-in before held-out.

    Raises:
      ConfigError: the config names a task that does not exist.
      TaskError: a task cannot be loaded or belongs to the other split; all problems
        of all tasks are listed.
    """
    tasks: dict[str, Task] = {}
    problems: list[str] = []
    for split, task_id, folder in task_folders(config):
        try:
            task = load_task(folder, prepared_dir(workdir, task_id))
        except TaskError as error:
            problems.append(str(error))
            continue
        if task.split != split:
            problems.append(f"{folder}: is {task.split}, but config.{split} names it")
        tasks[task_id] = task
    if problems:
        raise TaskError("\n".join(problems))
    return tasks


def task_folders(config: RunConfig) -> list[tuple[Split, str, Path]]:
    """Returns (split, task id, folder) of every task that `config` names.

    Raises:
      ConfigError: there is no such folder; the nearest name is given.
    """
    root = Path(config.task_root)
    known = sorted(path.parent.name for path in root.glob("*/task.toml"))
    named: list[tuple[Split, str]] = [
        *(("held_in", task_id) for task_id in config.held_in),
        *(("held_out", task_id) for task_id in config.held_out),
    ]
    for split, task_id in named:
        if task_id not in known:
            raise ConfigError(
                f"{split}: no task {task_id!r} in {root}/{_nearest(task_id, known)}"
            )
    return [(split, task_id, root / task_id) for split, task_id in named]


def prepared_dir(workdir: Path, task_id: str) -> Path:
    """Returns where the prepared data of a task belongs in a run directory."""
    return workdir / "tasks" / task_id


# --- the declaration ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Spec:
    """task.toml, checked; fields as in `Task`, `data_hash` covers what data is from."""

    id: str
    version: int
    split: Split
    modality: str
    metric: str
    id_column: str
    target_columns: tuple[str, ...]
    classes: tuple[str, ...]
    target_range: tuple[float, float] | None
    seed: int
    baseline: float
    baseline_std: float
    best: float
    limits: Limits
    data_hash: str


def _read_spec(folder: Path) -> _Spec:
    missing = [name for name in _FOLDER_FILES if not (folder / name).is_file()]
    if missing:
        raise TaskError(f"{folder}: missing {', '.join(missing)} (see tasks/README.md)")
    try:
        table = tomllib.loads((folder / "task.toml").read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TaskError(f"{folder}/task.toml: {error}") from error
    problems = [
        *_key_problems("", table, _REQUIRED_KEYS, _OPTIONAL_KEYS),
        *_key_problems("scores.", table.get("scores"), _SCORE_KEYS, {}),
        *_key_problems("source.", table.get("source"), _SOURCE_KEYS, {}),
        *_key_problems("limits.", table.get("limits", {}), {}, _LIMIT_KEYS),
    ]
    if not problems:
        problems = _value_problems(table, folder)
    if problems:
        raise TaskError(f"{folder}: " + f"\n{folder}: ".join(problems))
    scores = table["scores"]
    target_range = table.get("target_range")
    return _Spec(
        id=table["id"],
        version=table["version"],
        split=table["split"],
        modality=table["modality"],
        metric=table["metric"],
        id_column=table["id_column"],
        target_columns=tuple(table["target_columns"]),
        classes=tuple(str(c) for c in table.get("classes", ())),
        target_range=None if target_range is None else (*map(float, target_range),),
        seed=table["seed"],
        baseline=float(scores["baseline"]),
        baseline_std=float(scores["baseline_std"]),
        best=float(scores["best"]),
        limits=Limits(**table.get("limits", {})),
        data_hash=_data_hash(table, folder),
    )


def _key_problems(
    prefix: str,
    table: object,
    required: Mapping[str, type],
    optional: Mapping[str, type],
) -> list[str]:
    if not isinstance(table, dict):
        return []  # Reported where the table itself is checked.
    values = cast(dict[str, Any], table)
    known = {**required, **optional}
    problems = [
        f"task.toml: unknown key {prefix}{key}{_nearest(key, known)}"
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


def _value_problems(table: Mapping[str, Any], folder: Path) -> list[str]:
    """Returns what is wrong with values whose types are right."""
    problems: list[str] = []

    def expect(is_ok: bool, key: str, expected: str) -> None:
        if not is_ok:
            value = table.get(key)
            problems.append(f"task.toml: {key} = {value!r}: expected {expected}")

    metric = grading.METRICS.get(table["metric"])
    names: list[Any] = [table["id_column"], *table["target_columns"]]
    classes: list[Any] = table.get("classes", [])
    target_range: list[Any] | None = table.get("target_range")
    is_text = all(isinstance(name, str) and name for name in names)
    expect(table["id"] == folder.name, "id", f"the folder's name {folder.name!r}")
    expect(table["version"] >= 1, "version", "at least 1")
    expect(table["split"] in get_args(Split), "split", f"one of {get_args(Split)}")
    expect(table["modality"] in MODALITIES, "modality", f"one of {MODALITIES}")
    is_unique = is_text and len(set(names)) == len(names) > 1
    expect(is_unique, "target_columns", "different names, at least one")
    if metric is None:
        near = _nearest(table["metric"], grading.METRICS)
        expect(False, "metric", f"one of {sorted(grading.METRICS)}{near}")
    else:
        needs_classes = metric.kind in {"class", "ranking"}
        expect(
            len(set(map(str, classes))) == len(classes) and (len(classes) >= 2)
            if needs_classes
            else not classes,
            "classes",
            f"two or more with metric {metric.name}"
            if needs_classes
            else f"none with metric {metric.name}",
        )
        is_any = metric.name not in grading.SINGLE_COLUMN_METRICS
        expect(
            is_any or len(names) == 2,
            "target_columns",
            f"one with metric {metric.name}",
        )
        scores = table["scores"]
        sign = 1.0 if metric.direction == "max" else -1.0
        expect(
            sign * (scores["best"] - scores["baseline"]) > 0,
            "scores",
            f"best better than baseline ({metric.direction})",
        )
    if target_range is not None:
        is_range = len(target_range) == 2 and target_range[0] < target_range[1]
        expect(is_range, "target_range", "[lowest, highest]")
    summary = (folder / "description.md").read_text(encoding="utf-8").split("\n")[0]
    if not 1 <= len(summary.split()) <= MAX_SUMMARY_WORDS:
        problems.append(
            f"description.md: first line must be one sentence of at most "
            f"{MAX_SUMMARY_WORDS} words"
        )
    return problems


def _data_hash(table: Mapping[str, Any], folder: Path) -> str:
    """Returns a hash of all that the prepared data depends on."""
    keys = ("id", "version", "seed", "id_column", "target_columns", "metric")
    values = json.dumps([table[key] for key in keys])
    return _sha256(values.encode() + (folder / "prepare.py").read_bytes())


# --- the data -----------------------------------------------------------------------


def _load_prepare(folder: Path) -> Prepare:
    path = folder / "prepare.py"
    spec = importlib.util.spec_from_file_location(f"prepare_{folder.name}", path)
    if spec is None or spec.loader is None:
        raise TaskError(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "prepare", None)):
        raise TaskError(f"{path}: defines no function prepare(rng)")
    return module.prepare


def _data_files(spec: _Spec, prepare: Prepare) -> dict[str, bytes]:
    """Returns relative path -> content of every prepared file."""
    rng = np.random.default_rng(spec.seed)
    data = prepare(rng)
    _check_tables(spec, data)
    num_train, num_test = len(data.train), len(data.test)
    ids = rng.permutation(num_train + num_test)
    features = [c for c in data.test.columns if c not in spec.target_columns]
    targets = list(spec.target_columns)
    train = _with_ids(data.train, ids[:num_train], spec.id_column)
    test = _with_ids(data.test, ids[num_train:], spec.id_column)
    parts = np.array(get_args(Part))[np.arange(num_test) % 2]
    test[grading.PART_COLUMN] = rng.permutation(parts)
    test_columns = [spec.id_column, *features]
    label_columns = [spec.id_column, *targets, grading.PART_COLUMN]
    files = {
        "public/train.csv": train,
        "public/test.csv": test[test_columns],
        "public/sample_submission.csv": _sample_submission(spec, test),
        "private/labels.csv": test[label_columns],
    }
    for name, table in data.links.items():
        rows = pd.DataFrame({c: ids[table[c].to_numpy()] for c in table.columns})
        order = np.lexsort([rows[c] for c in reversed(rows.columns)])
        files[f"public/{name}"] = rows.iloc[order]
    return {
        name: table.to_csv(index=False, lineterminator="\n").encode()
        for name, table in files.items()
    }


def _check_tables(spec: _Spec, data: PreparedData) -> None:
    targets = set(spec.target_columns)
    features = [c for c in data.test.columns if c not in targets]
    lacking = sorted(targets - set(data.test.columns))
    unknown = sorted(set(features) - set(data.train.columns))
    reserved = {spec.id_column, grading.PART_COLUMN} & {
        *data.train.columns,
        *data.test.columns,
    }
    problems = [
        f"test lacks the target columns {lacking}" if lacking else "",
        f"train lacks the feature columns {unknown}" if unknown else "",
        f"column names {sorted(reserved)} are reserved" if reserved else "",
        "" if len(data.train) and len(data.test) >= 2 else "too few rows",
    ]
    found = [p for p in problems if p]
    if found:
        raise TaskError(f"{spec.id}/prepare.py: {'; '.join(found)}")


def _with_ids(table: pd.DataFrame, ids: Any, id_column: str) -> pd.DataFrame:
    """Returns `table` with a leading id column, sorted by it."""
    numbered = table.reset_index(drop=True)
    numbered.insert(0, id_column, ids)
    return numbered.sort_values(id_column, ignore_index=True)


def _sample_submission(spec: _Spec, test: pd.DataFrame) -> pd.DataFrame:
    """Returns a valid submission that holds no information."""
    low, high = spec.target_range or (0.0, 1.0)
    constants: dict[str, object] = {
        "class": spec.classes[0] if spec.classes else "",
        "ranking": " ".join(spec.classes[: grading.RANKING_LENGTH]),
        "probability": 1.0 / max(2, len(spec.target_columns)),
        "number": (low + high) / 2,
        "non_negative": low,
    }
    sample = test[[spec.id_column]].copy()
    for name in spec.target_columns:
        sample[name] = constants[grading.METRICS[spec.metric].kind]
    return sample


def _write_prepared(spec: _Spec, files: Mapping[str, bytes], prepared: Path) -> None:
    if prepared.exists():
        raise TaskError(f"{prepared}: has no task.json; move the folder away")
    partial = prepared.with_name(f".{prepared.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, data in files.items():
        path = partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    record = {
        "id": spec.id,
        "version": spec.version,
        "data_hash": spec.data_hash,
        "files": {name: _sha256(data) for name, data in sorted(files.items())},
    }
    (partial / "task.json").write_text(json.dumps(record, indent=1) + "\n")
    os.replace(partial, prepared)


def _verify_prepared(spec: _Spec, prepared: Path) -> dict[str, str]:
    """Returns name -> hash of the prepared files, which are those of `spec`."""
    again = f"remove {prepared} and run launch.prepare again"
    try:
        record = json.loads((prepared / "task.json").read_text())
        data_hash, files = record["data_hash"], dict[str, str](record["files"])
    except FileNotFoundError:
        raise TaskError(
            f"{prepared}: no prepared data; run launch.prepare first"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise TaskError(f"{prepared}/task.json is damaged; {again}") from error
    if data_hash != spec.data_hash:
        raise TaskError(
            f"{prepared}: made from another version of task {spec.id}; use a new run "
            f"directory, or {again}"
        )
    problems: list[str] = []
    for name, expected in files.items():
        path = prepared / name
        if not path.is_file():
            problems.append(f"{path}: missing; {again}")
        elif _sha256(path.read_bytes()) != expected:
            problems.append(f"{path}: changed since it was prepared; {again}")
    if problems:
        raise TaskError("\n".join(problems))
    return files


def _check_labels(task: Task) -> None:
    """Raises unless the labels themselves get the perfect score on both parts."""
    labels = grading.read_labels(task)
    gold = labels.drop(columns=grading.PART_COLUMN).to_csv(index=False).encode()
    perfect = grading.METRICS[task.metric].perfect
    for part in get_args(Part):
        try:
            score = grading.grade(task, gold, part)
        except (SubmissionError, ValueError) as error:
            raise TaskError(
                f"{task.id}: its own labels are invalid: {error}"
            ) from error
        if abs(score - perfect) > 1e-9:
            raise TaskError(f"{task.id}: its own labels score {score} on {part}")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _nearest(name: str, known: Iterable[str]) -> str:
    options: Sequence[str] = sorted(known)
    near = difflib.get_close_matches(name, options, 1, 0.4)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(options)}"
