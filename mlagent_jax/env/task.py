"""Tasks: preparing the data of a folder once, and loading the result.

`prepare_task` writes the files that `env.task_files` makes of a task folder, and
`load_task` turns both into the `Task` that everything else uses. Real data is prepared
once, by an import, and then shared by all runs; its baseline is measured there.
"""

# pyright: standard

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, get_args

from mlagent_jax.config import RunConfig
from mlagent_jax.env import grading
from mlagent_jax.env.archive import hash_file
from mlagent_jax.env.baseline import read_baseline
from mlagent_jax.env.task_data import PreparedData, split_rows
from mlagent_jax.env.task_files import TaskFiles, task_files
from mlagent_jax.env.task_folder import ENTRY_SCRIPT, TaskSpec, read_spec
from mlagent_jax.env.task_rules import nearest_name
from mlagent_jax.errors import ConfigError, SubmissionError, TaskError
from mlagent_jax.types import Part, Split, Task

__all__ = [
    "ENTRY_SCRIPT",
    "PreparedData",
    "imported_dir",
    "load_task",
    "load_tasks",
    "prepare_task",
    "prepared_dir",
    "rebuild_hashes",
    "split_rows",
    "task_folders",
]

# Prepared files larger than this together are checked by size and time of change.
_MAX_HASHED_BYTES = 64 << 20


def prepare_task(folder: Path, prepared: Path, archive: Path | None = None) -> Task:
    """Writes the data of a task, or checks what is there, and returns the task.

    The files appear all at once, by a rename, so a reader never sees a part of them.

    Args:
      folder: task folder, e.g. tasks/digits.
      prepared: where `public/`, `private/` and task.json belong.
      archive: the real data (see `env.archive.unpack`); None for data that the folder
        makes itself.

    Raises:
      TaskError: the folder breaks the contract, the archive is not the one that it
        expects, or `prepared` holds data that was changed since, or made from another
        version of the folder.
    """
    if not (prepared / "task.json").is_file():
        if prepared.exists():
            raise TaskError(f"{prepared}: has no task.json; move the folder away")
        partial = prepared.with_name(f".{prepared.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        spec = read_spec(folder)
        with task_files(folder, spec, archive) as files:
            files.write(partial)
            _write_record(spec, files, partial)
        _check_labels(load_task(folder, partial, needs_baseline=False))
        os.replace(partial, prepared)
    return load_task(folder, prepared, needs_baseline=False)


def rebuild_hashes(folder: Path) -> dict[str, str]:
    """Returns the hashes that files of data that a folder makes itself have anew.

    Raises:
      TaskError: the folder breaks the contract.
    """
    with task_files(folder, read_spec(folder)) as files:
        return files.hashes()


def load_task(folder: Path, prepared: Path, *, needs_baseline: bool = True) -> Task:
    """Returns the task of a folder whose data was prepared before.

    Args:
      folder: task folder, e.g. tasks/digits.
      prepared: where `prepare_task` wrote.
      needs_baseline: refuse real data whose baseline was not measured; without it the
        baseline is NaN.

    Raises:
      TaskError: the folder breaks the contract, or the prepared data is missing,
        changed, or made from another version of the folder; lists all problems.
    """
    spec = read_spec(folder)
    record = _read_record(spec, prepared)
    task = Task(
        id=spec.id,
        version=spec.version,
        split=spec.split,
        modality=spec.modality,
        description=spec.description,
        metric=spec.metric.name,
        direction=spec.metric.direction,
        id_column=spec.id_column,
        target_columns=spec.target_columns,
        classes=tuple(record.get("classes", spec.classes)),
        target_range=spec.target_range,
        optional_columns=spec.optional_columns,
        sample_file=spec.sample_file,
        source=record.get("source", "pack"),
        is_deterministic=spec.is_deterministic,
        starter=spec.starter,
        entry_script=ENTRY_SCRIPT,
        baseline=spec.baseline,
        baseline_std=spec.seed_std,
        best=spec.best,
        limits=spec.limits,
        public_dir=(prepared / "public").resolve(),
        private_dir=(prepared / "private").resolve(),
        file_hashes=dict(record["files"]),
    )
    if task.source != "real" or spec.real is None:
        return task
    measured = read_baseline(prepared, spec.starter)
    if measured is None and needs_baseline:
        raise TaskError(
            f"{prepared}: the baseline of {spec.id} is not measured with this starter: "
            f"python -m launch.tasks measure {spec.id} --real_data={prepared.parent}"
        )
    return dataclasses.replace(
        task,
        baseline=math.nan if measured is None else measured.baseline,
        baseline_std=math.nan if measured is None else measured.seed_std,
        best=spec.real.best,
        limits=spec.real.limits,
        human=spec.real.human,
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
            task = load_task(folder, prepared_dir(config, workdir, folder))
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


def prepared_dir(config: RunConfig, workdir: Path, folder: Path) -> Path:
    """Returns where the prepared data of one of a run's tasks belongs."""
    return imported_dir(config, folder) or workdir / "tasks" / folder.name


def imported_dir(config: RunConfig, folder: Path) -> Path | None:
    """Returns where the imported real data of a task belongs.

    None if the config wants no real data, or the task has none.
    """
    if config.real_data is None or read_spec(folder).real is None:
        return None
    return Path(config.real_data) / folder.name


def _write_record(spec: TaskSpec, files: TaskFiles, target: Path) -> None:
    record = {
        "id": spec.id,
        "version": spec.version,
        "data_hash": _data_hash(spec, files.source),
        "source": files.source,
        "classes": files.classes,
        "num_train": files.num_train,
        "num_test": files.num_test,
        "files": files.hashes(),
        "stats": {name: _stat(target / name) for name in sorted(files.files)},
    }
    (target / "task.json").write_text(json.dumps(record, indent=1) + "\n")


def _data_hash(spec: TaskSpec, source: str) -> str:
    return f"{spec.data_hash}:real" if source == "real" else spec.data_hash


def _stat(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _read_record(spec: TaskSpec, prepared: Path) -> dict[str, Any]:
    """Returns task.json after comparing the prepared files with it.

    Raises:
      TaskError: they are not the ones that were prepared from `spec`.
    """
    again = f"remove {prepared} and run launch.prepare again"
    try:
        record = json.loads((prepared / "task.json").read_text())
        data_hash, files = record["data_hash"], dict[str, str](record["files"])
        stats = dict[str, list[int]](record.get("stats", {}))
    except FileNotFoundError:
        raise TaskError(
            f"{prepared}: no prepared data; run launch.prepare first, or for real data "
            f"`python -m launch.tasks import {spec.id} <archive>`"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise TaskError(f"{prepared}/task.json is damaged; {again}") from error
    if data_hash != _data_hash(spec, record.get("source", "pack")):
        raise TaskError(
            f"{prepared}: made from another version of task {spec.id}; use a new run "
            f"directory, or {again}"
        )
    is_large = sum(size for size, _ in stats.values()) > _MAX_HASHED_BYTES
    problems: list[str] = []
    for name, expected in files.items():
        path = prepared / name
        if not path.is_file():
            problems.append(f"{path}: missing; {again}")
        elif is_large and _stat(path) == stats.get(name):
            continue
        elif hash_file(path) != expected:
            problems.append(f"{path}: changed since it was prepared; {again}")
    if problems:
        raise TaskError("\n".join(problems))
    return record


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
