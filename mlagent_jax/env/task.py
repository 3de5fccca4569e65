"""Tasks: preparing the data of a folder once, and loading the result.

`prepare_task` turns a task folder and its pure function of a seed into files, and
`load_task` turns both into the `Task` that everything else uses. Here, and not in the
tasks' own code, labels are cut off the hidden rows, rows are shuffled and ids are
numbered anew, so that no task can leak labels by order or by name.
"""

# pandas describes its types only in part; strict mode would report nothing but that.
# pyright: standard

import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlagent_jax.config import RunConfig
from mlagent_jax.env import grading
from mlagent_jax.env.task_folder import (
    ENTRY_SCRIPT,
    TaskSpec,
    nearest_name,
    read_spec,
)
from mlagent_jax.errors import ConfigError, SubmissionError, TaskError
from mlagent_jax.types import Part, Split, Task

__all__ = [
    "ENTRY_SCRIPT",
    "PreparedData",
    "load_task",
    "load_tasks",
    "prepare_task",
    "prepared_dir",
    "rebuild_hashes",
    "split_rows",
    "task_folders",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedData:
    """What a task's `prepare` returns.

    Attributes:
      train: rows that the agent sees, labels included.
      test: hidden rows: feature columns of `train` and the target columns. Targets
        are cut off before the agent sees them. Half of the rows, at random, become
        the selection part, the rest the test part.
      links: further public tables that refer to rows, file name -> table (a graph's
        edges). All columns hold row positions: 0 is the first row of `train`, and
        the rows of `test` count on after the last. They are written with ids instead.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    links: Mapping[str, pd.DataFrame] = dataclasses.field(
        default_factory=dict[str, pd.DataFrame]
    )


Prepare = Callable[[np.random.Generator], PreparedData]


def split_rows(
    table: pd.DataFrame,
    num_train: int,
    links: Mapping[str, pd.DataFrame] | None = None,
) -> PreparedData:
    """Returns the first `num_train` rows for the agent, the rest hidden."""
    hidden = table.tail(len(table) - num_train)
    return PreparedData(train=table.head(num_train), test=hidden, links=links or {})


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
        if prepared.exists():
            raise TaskError(f"{prepared}: has no task.json; move the folder away")
        partial = prepared.with_name(f".{prepared.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        spec = read_spec(folder)
        _write_files(spec, _data_files(spec, _load_prepare(folder)), partial)
        _check_labels(load_task(folder, partial))
        os.replace(partial, prepared)
    return load_task(folder, prepared)


def rebuild_hashes(folder: Path) -> dict[str, str]:
    """Returns the hashes that the prepared files have when they are made anew.

    Raises:
      TaskError: the folder breaks the contract.
    """
    files = _data_files(read_spec(folder), _load_prepare(folder))
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
    spec = read_spec(folder)
    hashes = _verify_prepared(spec, prepared)
    return Task(
        id=spec.id,
        version=spec.version,
        split=spec.split,
        modality=spec.modality,
        description=spec.description,
        metric=spec.metric.name,
        direction=spec.metric.direction,
        id_column=spec.id_column,
        target_columns=spec.target_columns,
        classes=spec.classes,
        target_range=spec.target_range,
        starter=spec.starter,
        entry_script=ENTRY_SCRIPT,
        baseline=spec.baseline,
        baseline_std=spec.seed_std,
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
                f"{split}: no task {task_id!r} in {root}/{nearest_name(task_id, known)}"
            )
    return [(split, task_id, root / task_id) for split, task_id in named]


def prepared_dir(workdir: Path, task_id: str) -> Path:
    """Returns where the prepared data of a task belongs in a run directory."""
    return workdir / "tasks" / task_id


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


def _data_files(spec: TaskSpec, prepare: Prepare) -> dict[str, bytes]:
    """Returns relative path -> content of every prepared file."""
    rng = np.random.default_rng(spec.seed)
    data = prepare(rng)
    _check_tables(spec, data)
    num_train, num_test = len(data.train), len(data.test)
    ids = rng.permutation(num_train + num_test)
    parts = np.array(get_args(Part))[np.arange(num_test) % 2]
    train = _with_ids(data.train, ids[:num_train], spec.id_column)
    hidden = data.test.assign(**{grading.PART_COLUMN: rng.permutation(parts)})
    hidden = _with_ids(hidden, ids[num_train:], spec.id_column)
    labels = [spec.id_column, *spec.target_columns, grading.PART_COLUMN]
    files = {
        "public/train.csv": train,
        "public/test.csv": hidden.drop(columns=labels[1:]),
        "public/sample_submission.csv": _sample_submission(spec, hidden),
        "private/labels.csv": hidden.filter(labels),
    }
    for name, table in data.links.items():
        links = pd.DataFrame({c: ids[table[c].to_numpy()] for c in table.columns})
        files[f"public/{name}"] = links.sort_values(list(links.columns))
    return {
        name: table.to_csv(index=False, lineterminator="\n").encode()
        for name, table in files.items()
    }


def _check_tables(spec: TaskSpec, data: PreparedData) -> None:
    """Checks that the tables fit the declaration and each other.

    Raises:
      TaskError: they do not.
    """
    targets = set(spec.target_columns)
    lacking = sorted(targets - set(data.test.columns))
    unknown = sorted(set(data.test.columns) - targets - set(data.train.columns))
    columns = {*data.train.columns, *data.test.columns}
    reserved = sorted({spec.id_column, grading.PART_COLUMN} & columns)
    num_gaps = data.test.isna().sum().to_dict()
    gaps = [c for c in targets if num_gaps.get(c, 0)]
    problems = [
        f"test has no value in places of {sorted(gaps)}" if gaps else "",
        f"test lacks the target columns {lacking}" if lacking else "",
        f"train lacks the feature columns {unknown}" if unknown else "",
        f"column names {reserved} are reserved" if reserved else "",
        "" if len(data.train) and len(data.test) >= 2 else "too few rows",
    ]
    found = [p for p in problems if p]
    if found:
        raise TaskError(f"{spec.id}/prepare.py: {'; '.join(found)}")


def _with_ids(
    table: pd.DataFrame, ids: npt.NDArray[np.int64], id_column: str
) -> pd.DataFrame:
    """Returns `table` with a leading id column, sorted by it."""
    numbered = table.reset_index(drop=True)
    numbered.insert(0, id_column, ids)
    return numbered.sort_values(id_column, ignore_index=True)


def _sample_submission(spec: TaskSpec, hidden: pd.DataFrame) -> pd.DataFrame:
    """Returns a valid submission that holds no information."""
    low, high = spec.target_range or (0.0, 1.0)
    value: float | str
    match spec.metric.kind:
        case "class":
            value = spec.classes[0]
        case "ranking":
            value = " ".join(spec.classes[: grading.RANKING_LENGTH])
        case "probability":
            value = 1.0 / max(2, len(spec.target_columns))
        case "number":
            value = (low + high) / 2
        case "non_negative":
            value = low
    columns = dict.fromkeys(spec.target_columns, value)
    return hidden.filter([spec.id_column]).assign(**columns)


def _write_files(spec: TaskSpec, files: Mapping[str, bytes], target: Path) -> None:
    """Writes files and task.json under a new folder."""
    for name, data in files.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    record = {
        "id": spec.id,
        "version": spec.version,
        "data_hash": spec.data_hash,
        "files": {name: _sha256(data) for name, data in sorted(files.items())},
    }
    (target / "task.json").write_text(json.dumps(record, indent=1) + "\n")


def _verify_prepared(spec: TaskSpec, prepared: Path) -> dict[str, str]:
    """Returns name -> hash of the prepared files.

    Raises:
      TaskError: they are not the ones that were prepared from `spec`.
    """
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
    """Checks that the labels themselves get the perfect score on both parts.

    Raises:
      TaskError: they do not, e.g. because a part holds one class only.
    """
    labels = grading.read_labels(task)
    gold = labels.drop(columns=grading.PART_COLUMN).to_csv(index=False).encode()
    perfect = grading.METRICS[task.metric].perfect
    for part in get_args(Part):
        try:
            score = grading.grade(task, gold, part)
        except (SubmissionError, ValueError) as error:
            raise TaskError(f"{task.id}: its labels are invalid: {error}") from error
        if abs(score - perfect) > 1e-9:
            raise TaskError(f"{task.id}: its labels score {score} on part {part}")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
