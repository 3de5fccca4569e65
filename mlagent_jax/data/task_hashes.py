"""What tasks were when trajectories were collected on them, by hash.

A task's version is raised by hand; its content may change without. States of a task
that has become another one are refused, since their scores mean nothing there.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from mlagent_jax.errors import DataError
from mlagent_jax.types import Task, to_json

_FILE = "tasks.json"
# Where a task lies is not what it is.
_NO_CONTENT = ("public_dir", "private_dir")


def task_hash(task: Task) -> str:
    """Returns a hash of everything that a task says, its data files included."""
    content = {k: v for k, v in to_json(task).items() if k not in _NO_CONTENT}
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def record_task_hashes(folder: Path, tasks: Mapping[str, Task]) -> None:
    """Writes the hashes of `tasks` beside the trajectories of `folder`.

    Raises:
      DataError: trajectories there were collected on other contents.
    """
    check_task_hashes(folder, tasks)
    hashes = _read(folder) | {name: task_hash(task) for name, task in tasks.items()}
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{_FILE}.partial"
    partial.write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n")
    os.replace(partial, folder / _FILE)


def check_task_hashes(folder: Path, tasks: Mapping[str, Task]) -> None:
    """Compares `tasks` with those that `folder` was collected on, as far as recorded.

    Raises:
      DataError: a task has changed since, or the record is damaged.
    """
    recorded = _read(folder)
    changed = sorted(
        name
        for name, task in tasks.items()
        if name in recorded and recorded[name] != task_hash(task)
    )
    if changed:
        raise DataError(
            f"{folder}: tasks {changed} have changed since trajectories were collected "
            "on them (their content has another hash); collect again into another "
            "workdir, or restore the tasks"
        )


def _read(folder: Path) -> dict[str, str]:
    path = folder / _FILE
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); collect again") from error
    return dict(value)
