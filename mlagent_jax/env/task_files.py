"""From a task's prepare.py to the files of its prepared folder, for every source.

Here, and not in the tasks' own code, hidden rows are divided into parts and, for tasks
of two tables, labels are cut off, rows shuffled and ids numbered anew, so that no such
task can leak labels by order or by name.
"""

# pandas describes its types only in part; strict mode would report nothing but that.
# pyright: standard

import dataclasses
import hashlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlagent_jax.env import grading
from mlagent_jax.env.archive import hash_file, unpack, unpack_inner
from mlagent_jax.env.task_data import (
    PART_COLUMN,
    UNSCORED,
    PreparedData,
    PreparedFiles,
    csv_bytes,
)
from mlagent_jax.env.task_folder import TaskSpec
from mlagent_jax.errors import TaskError
from mlagent_jax.types import Part, Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskFiles:
    """The content of a prepared folder.

    Attributes:
      files: "public/x" or "private/x" -> content, or a file with it.
      source: where the data comes from.
      classes: allowed labels, empty for metrics on numbers.
      num_train: number of visible examples.
      num_test: number of hidden rows.
    """

    files: Mapping[str, bytes | Path]
    source: Source
    classes: tuple[str, ...]
    num_train: int
    num_test: int

    def hashes(self) -> dict[str, str]:
        """Returns name -> sha256 of every file."""
        return {
            name: hash_file(data) if isinstance(data, Path) else _sha256(data)
            for name, data in sorted(self.files.items())
        }

    def write(self, target: Path) -> None:
        """Writes every file below a new folder."""
        for name, data in self.files.items():
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(data, Path):
                shutil.copyfile(data, path)
            else:
                path.write_bytes(data)


@contextmanager
def task_files(
    folder: Path, spec: TaskSpec, archive: Path | None = None
) -> Iterator[TaskFiles]:
    """Yields the files of a task; those that are paths exist only within the block.

    Args:
      folder: task folder.
      spec: what it declares.
      archive: the real data, None for data that the folder makes itself.

    Raises:
      TaskError: prepare.py breaks the contract, or the archive is not what it expects.
    """
    module = _load_prepare(folder, spec)
    rng = np.random.default_rng(spec.seed)
    with tempfile.TemporaryDirectory(prefix="mlagent_task_") as scratch:
        raw = Path(scratch) / "raw"
        source: Source
        if archive is not None:
            if spec.real is None:
                raise TaskError(f"{folder}: has no table [real], so no archive fits it")
            source = "real"
            unpack(archive, raw)
            data = module.from_archive(raw, source, rng)
        elif spec.real is not None:
            source = "lookalike"
            raw.mkdir()
            module.write_archive(raw, rng)
            unpack_inner(raw)
            data = module.from_archive(raw, source, rng)
        else:
            source = "pack"
            data = module.prepare(rng)
        if isinstance(data, PreparedData):
            data = _number_tables(spec, data, rng)
        files = _make_files(spec, source, data, rng)
        if source != "real":
            _check_rows(spec, files)
        yield files


def _load_prepare(folder: Path, spec: TaskSpec) -> ModuleType:
    path = folder / "prepare.py"
    found = importlib.util.spec_from_file_location(f"prepare_{folder.name}", path)
    if found is None or found.loader is None:
        raise TaskError(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    expected = {"prepare": "(rng)"}
    if spec.real is not None:
        expected = {"write_archive": "(raw, rng)", "from_archive": "(raw, source, rng)"}
    for name, arguments in expected.items():
        if not callable(getattr(module, name, None)):
            raise TaskError(f"{path}: defines no function {name}{arguments}")
    return module


def _number_tables(
    spec: TaskSpec, data: PreparedData, rng: np.random.Generator
) -> PreparedFiles:
    """Returns the files of two tables: rows shuffled and numbered, labels cut off."""
    _check_tables(spec, data)
    num_train, num_test = len(data.train), len(data.test)
    ids = rng.permutation(num_train + num_test)
    train = _with_ids(data.train, ids[:num_train], spec.id_column)
    hidden = data.test.assign(**{PART_COLUMN: _random_parts(num_test, rng)})
    hidden = _with_ids(hidden, ids[num_train:], spec.id_column)
    labels = [spec.id_column, *spec.target_columns, PART_COLUMN]
    public = {"train.csv": train, "test.csv": hidden.drop(columns=labels[1:])}
    for name, table in data.links.items():
        links = pd.DataFrame({c: ids[table[c].to_numpy()] for c in table.columns})
        public[name] = links.sort_values(list(links.columns))
    return PreparedFiles(
        public={name: csv_bytes(table) for name, table in public.items()},
        labels=hidden.filter(labels),
        num_train=num_train,
    )


def _make_files(
    spec: TaskSpec, source: Source, data: PreparedFiles, rng: np.random.Generator
) -> TaskFiles:
    labels = data.labels
    if PART_COLUMN not in labels.columns:
        parts = _random_parts(len(labels), rng)
        labels = labels.assign(**{PART_COLUMN: parts})
    classes = spec.classes or data.classes
    _check_files(spec, data, labels, classes)
    public = {f"public/{name}": content for name, content in data.public.items()}
    sample = f"public/{spec.sample_file}"
    if sample not in public:
        public[sample] = csv_bytes(_sample_submission(spec, labels, classes))
    columns = [spec.id_column, *spec.target_columns, PART_COLUMN]
    return TaskFiles(
        files={**public, "private/labels.csv": csv_bytes(labels.filter(columns))},
        source=source,
        classes=classes,
        num_train=data.num_train,
        num_test=len(labels),
    )


def _random_parts(num_rows: int, rng: np.random.Generator) -> npt.NDArray[np.str_]:
    return rng.permutation(np.array(get_args(Part))[np.arange(num_rows) % 2])


def _check_tables(spec: TaskSpec, data: PreparedData) -> None:
    """Checks that the tables fit the declaration and each other.

    Raises:
      TaskError: they do not.
    """
    targets = set(spec.target_columns)
    lacking = sorted(targets - set(data.test.columns))
    unknown = sorted(set(data.test.columns) - targets - set(data.train.columns))
    columns = {*data.train.columns, *data.test.columns}
    reserved = sorted({spec.id_column, PART_COLUMN} & columns)
    num_gaps = data.test.isna().sum().to_dict()
    gaps = [c for c in targets if num_gaps.get(c, 0)]
    _refuse(
        spec,
        f"test has no value in places of {sorted(gaps)}" if gaps else "",
        f"test lacks the target columns {lacking}" if lacking else "",
        f"train lacks the feature columns {unknown}" if unknown else "",
        f"column names {reserved} are reserved" if reserved else "",
        "" if len(data.train) and len(data.test) >= 2 else "too few rows",
    )


def _check_files(
    spec: TaskSpec, data: PreparedFiles, labels: pd.DataFrame, classes: tuple[str, ...]
) -> None:
    """Checks what prepare.py returned against the declaration.

    Raises:
      TaskError: it does not fit.
    """
    columns = [spec.id_column, *spec.target_columns]
    lacking = [name for name in columns if name not in labels.columns]
    if lacking:
        _refuse(spec, f"labels lack the columns {lacking}")
    ids = labels[spec.id_column].astype(str)
    num_gaps = int(labels[columns].isna().to_numpy().sum())
    parts = set(labels[PART_COLUMN])
    needs_classes = spec.metric.kind in {"class", "ranking"}
    outside = [
        name
        for name in data.public
        if name.startswith("/") or ".." in Path(name).parts or not name
    ]
    _refuse(
        spec,
        f"labels have {num_gaps} empty cells" if num_gaps else "",
        "labels name some id twice" if ids.duplicated().any() else "",
        f"labels have the parts {sorted(parts)}; expected {get_args(Part)}"
        if not set(get_args(Part)) <= parts <= {*get_args(Part), UNSCORED}
        else "",
        "classes stand neither in task.toml nor in what prepare.py returned"
        if needs_classes and not classes
        else "",
        "" if data.num_train else "no training examples",
        f"public paths {outside} leave the folder" if outside else "",
    )


def _check_rows(spec: TaskSpec, files: TaskFiles) -> None:
    declared = (spec.num_train, spec.num_test)
    made = (files.num_train, files.num_test)
    if declared not in {made, (None, None)}:
        _refuse(spec, f"(train, test) rows are {made}; task.toml says {declared}")


def _refuse(spec: TaskSpec, *problems: str) -> None:
    found = [problem for problem in problems if problem]
    if found:
        raise TaskError(f"{spec.id}/prepare.py: {'; '.join(found)}")


def _with_ids(
    table: pd.DataFrame, ids: npt.NDArray[np.int64], id_column: str
) -> pd.DataFrame:
    """Returns `table` with a leading id column, sorted by it."""
    numbered = table.reset_index(drop=True)
    numbered.insert(0, id_column, ids)
    return numbered.sort_values(id_column, ignore_index=True)


def _sample_submission(
    spec: TaskSpec, labels: pd.DataFrame, classes: tuple[str, ...]
) -> pd.DataFrame:
    """Returns a valid submission that holds no information."""
    low, high = spec.target_range or (0.0, 1.0)
    value: Any
    match spec.metric.kind:
        case "class":
            value = classes[0]
        case "ranking":
            value = " ".join(classes[: grading.RANKING_LENGTH])
        case "probability":
            value = 1.0 / max(2, len(spec.target_columns))
        case "number":
            value = (low + high) / 2
        case "non_negative":
            value = low
    columns = dict.fromkeys(spec.target_columns, value)
    return labels.filter([spec.id_column]).assign(**columns)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
