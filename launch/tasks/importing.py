"""Imports the real data of a task from an archive that the user has."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from launch.run_record import write_json
from mlagent_jax.env.archive import archive_hashes
from mlagent_jax.env.task import prepare_task
from mlagent_jax.env.task_folder import RealSpec, read_spec
from mlagent_jax.errors import TaskError
from mlagent_jax.types import Task

_KAGGLE_FILES = ("kaggle.json", "access_token")


def import_task(
    folder: Path, archive: Path | None, root: Path
) -> tuple[Task, dict[str, Any]]:
    """Prepares real data below `root` and returns the task and a record of it.

    The hashes of the first archive are kept in `<root>/<task>.archive.json`; another
    archive is refused afterwards, since scores would not be comparable.

    Args:
      folder: task folder with a table [real].
      archive: file or folder; None asks the kaggle program for it.
      root: folder of imported real data.

    Raises:
      TaskError: the task has no real data, the archive is not what it expects or
        differs from the first one, or the download is not possible.
    """
    spec = read_spec(folder)
    if spec.real is None:
        raise TaskError(f"{folder}: makes its own data; there is nothing to import")
    root.mkdir(parents=True, exist_ok=True)
    if archive is None:
        archive = _download(spec.real, root / "downloads")
    if not archive.exists():
        raise TaskError(f"{archive}: no such file or folder")
    hashes, record = archive_hashes(archive), root / f"{spec.id}.archive.json"
    _check_hashes(archive, hashes, record)
    task = prepare_task(folder, root / spec.id, archive)
    if not record.is_file():
        write_json(record, hashes)
    made = json.loads((root / spec.id / "task.json").read_text())
    counts = (made["num_train"], made["num_test"])
    published = (spec.real.num_train, spec.real.num_test)
    return task, {
        "task": spec.id,
        "data": str(root / spec.id),
        "num_train": counts[0],
        "num_test": counts[1],
        "published_rows": published,
        "matches_published_rows": counts == published,
    }


def _check_hashes(archive: Path, hashes: dict[str, str], record: Path) -> None:
    """Compares an archive's hashes with those of the first import, if there was one.

    Raises:
      TaskError: it is another archive.
    """
    first = json.loads(record.read_text()) if record.is_file() else hashes
    if sorted(first.values()) != sorted(hashes.values()):  # Names may have changed.
        raise TaskError(
            f"{archive}: is not the archive that was imported first (hashes in "
            f"{record}); remove that file and the data to start anew"
        )


def _download(real: RealSpec, target: Path) -> Path:
    """Returns a folder with what the kaggle program downloaded.

    Raises:
      TaskError: the data is not Kaggle's, or the program or its credentials are
        missing, or it failed.
    """
    if real.kaggle is None:
        raise TaskError(f"download {real.url} yourself and give the file's path")
    program = shutil.which("kaggle")
    if program is None or not _has_credentials():
        page = f"https://www.kaggle.com/competitions/{real.kaggle}/data"
        raise TaskError(
            "give the path of the archive; downloading it needs the `kaggle` program "
            f"with credentials (accept the rules and download it at {page})"
        )
    folder = target / real.kaggle
    folder.mkdir(parents=True, exist_ok=True)
    command = [program, "competitions", "download", "-c", real.kaggle]
    result = subprocess.run(
        [*command, "-p", str(folder)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        said = (result.stderr.strip() or result.stdout.strip())[-500:]
        raise TaskError(f"kaggle could not download {real.kaggle}: {said}")
    return folder


def _has_credentials() -> bool:
    if "KAGGLE_API_TOKEN" in os.environ or "KAGGLE_KEY" in os.environ:
        return True
    default = Path.home() / ".kaggle"
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR", default))
    return any((folder / name).is_file() for name in _KAGGLE_FILES)
