"""The commands of `python -m launch.tasks`, one function each."""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launch.tasks.importing import import_task
from launch.tasks.measure import (
    format_measurement,
    measure_baseline,
    measure_task,
    write_scores,
)
from launch.tasks.scaffold import make_task_folder
from mlagent_jax.config import EnvConfig
from mlagent_jax.env.baseline import write_baseline
from mlagent_jax.env.executor import Executor
from mlagent_jax.env.standing import standing
from mlagent_jax.env.task import load_task, prepare_task
from mlagent_jax.env.task_check import check_task, part_scores
from mlagent_jax.env.task_folder import TaskSpec, read_spec
from mlagent_jax.env.task_rules import nearest_name
from mlagent_jax.errors import ConfigError, SubmissionError
from mlagent_jax.explore.ideas import MOVES_FILE, read_moves
from mlagent_jax.types import Task, to_json

REAL_DATA = "real_data"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The flags of the command line, see `launch.tasks.__main__`."""

    task_root: str
    real_data: str | None = None
    data_dir: str | None = None
    is_all: bool = False
    write: bool = False
    is_quick: bool = False
    first: tuple[str, ...] = ()
    num_seeds: int = 3
    csv: str | None = None
    target: str | None = None
    id_column: str | None = None
    metric: str | None = None
    encoding: str | None = None


Command = Callable[[Sequence[str], Options], bool]


def dispatch(words: Sequence[str], options: Options) -> bool:
    """Carries out the command that `words` name; returns whether all is right.

    Raises:
      ConfigError: the command is wrong.
      TaskError: a task is not right; other `MlAgentError`s by their meaning.
    """
    commands: dict[str, Command] = {
        "list": _list,
        "check": _check,
        "measure": _measure,
        "prepare": _prepare,
        "run": _run,
        "grade": _grade,
        "import": _import,
        "new": _new,
    }
    if not words or words[0] not in commands:
        given = nearest_name(words[0], commands) if words else ""
        raise ConfigError(f"expected one of {', '.join(commands)}{given}; see --help")
    return commands[words[0]](words[1:], options)


def _list(words: Sequence[str], options: Options) -> bool:
    _expect(words, 0, "list takes no further words")
    median = "median of people on real data"
    header = ("task", "split", "data", "metric", "baseline", "best", median)
    rows: list[tuple[str, ...]] = [header]
    for folder in _known_folders(options):
        spec = read_spec(folder)
        rows.append(_list_row(spec, options))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
    return True


def _list_row(spec: TaskSpec, options: Options) -> tuple[str, ...]:
    data = "pack"
    if spec.real is not None:
        root = Path(options.real_data or REAL_DATA)
        is_imported = (root / spec.id / "task.json").is_file()
        data = "lookalike, real" if is_imported else "lookalike"
    human = spec.real.human if spec.real is not None else None
    arrow = "up" if spec.metric.direction == "max" else "down"
    return (
        spec.id,
        spec.split,
        f"{data} ({spec.modality})",
        f"{spec.metric.name} ({arrow})",
        f"{spec.baseline:.4g} +- {spec.seed_std:.2g}",
        f"{spec.best:.4g}",
        "-" if human is None else f"{human.median:.5g}",
    )


def _check(words: Sequence[str], options: Options) -> bool:
    folders = _chosen_folders(words, options)
    is_right = True
    for folder in folders:
        with _prepared(folder, options) as task, _executor(task) as executor:
            problems = check_task(folder, task, executor)
        print(f"{task.id} ({task.source}): {'; '.join(problems) or 'ok'}", flush=True)
        is_right = is_right and not problems
    return is_right


def _measure(words: Sequence[str], options: Options) -> bool:
    for folder in _chosen_folders(words, options):
        prepared = _imported(folder, options)
        if prepared is not None:
            task = load_task(folder, prepared, needs_baseline=False)
            with _executor(task) as executor:
                baseline = measure_baseline(task, options.num_seeds, executor)
            write_baseline(prepared, baseline)
            _print_record({"task": task.id, "source": task.source, **vars(baseline)})
            continue
        with _prepared(folder, options) as task, _executor(task) as executor:
            moves = read_moves(folder / MOVES_FILE)
            result = measure_task(
                task,
                moves,
                executor,
                is_quick=options.is_quick,
                first=options.first,
            )
        print(format_measurement(task, result), flush=True)
        if options.write:
            write_scores(folder, result)
    return True


def _prepare(words: Sequence[str], options: Options) -> bool:
    folders = _chosen_folders(words, options)
    if options.data_dir is None:
        raise ConfigError("prepare needs --data_dir, where the data will be kept")
    for folder in folders:
        with _prepared(folder, options) as task:
            _print_record({"task": task.id, "data": str(task.public_dir)})
    return True


def _run(words: Sequence[str], options: Options) -> bool:
    _expect(words, 2, "run needs a task and a script: run digits my_train.py")
    folder, script = _folder(words[0], options), Path(words[1])
    source = _read_file(script)
    with _prepared(folder, options) as task, _executor(task) as executor:
        files = {name: text.encode() for name, text in task.starter.items()}
        files[task.entry_script] = source
        execution = executor.run(task.id, files, task.entry_script)
        result = to_json(execution.result)
        record = {**_score(task, execution.submission), "execution": result}
        record["isolation"] = executor.isolation
    _print_record(record)
    return bool(record["valid"])


def _grade(words: Sequence[str], options: Options) -> bool:
    _expect(words, 2, "grade needs a task and a file: grade digits submission.csv")
    folder, path = _folder(words[0], options), Path(words[1])
    data = _read_file(path)
    with _prepared(folder, options) as task:
        record = _score(task, data)
    _print_record(record)
    return bool(record["valid"])


def _import(words: Sequence[str], options: Options) -> bool:
    if len(words) not in {1, 2}:
        raise ConfigError("import needs a task, and an archive unless kaggle is set up")
    folder = _folder(words[0], options)
    archive = Path(words[1]).expanduser() if len(words) == 2 else None
    root = Path(options.real_data or REAL_DATA)
    task, record = import_task(folder, archive, root)
    with _executor(task) as executor:
        baseline = measure_baseline(task, options.num_seeds, executor)
    write_baseline(root / task.id, baseline)
    _print_record({**record, "baseline": vars(baseline)})
    return True


def _new(words: Sequence[str], options: Options) -> bool:
    _expect(words, 1, "new needs a name: new churn --csv=FILE --target=COLUMN")
    if options.csv is None or options.target is None:
        raise ConfigError("new needs --csv=FILE and --target=COLUMN")
    folder = make_task_folder(
        Path(options.task_root) / words[0],
        csv=Path(options.csv).expanduser(),
        target=options.target,
        id_column=options.id_column,
        metric=options.metric,
        encoding=options.encoding,
    )
    with _prepared(folder, options) as task, _executor(task) as executor:
        moves = read_moves(folder / MOVES_FILE)
        result = measure_task(task, moves, executor, is_quick=True)
        write_scores(folder, result)
        problems = check_task(folder, task, executor)
    print(format_measurement(task, result))
    print(f"{folder}: {'; '.join(problems) or 'ok'}")
    return not problems


def _score(task: Task, submission: bytes | None) -> dict[str, Any]:
    """Returns the record of a graded submission."""
    record: dict[str, Any] = {
        "task": task.id,
        "version": task.version,
        "source": task.source,
        "metric": task.metric,
        "direction": task.direction,
    }
    if submission is None:
        reason, message = "missing_file", "no submission.csv was written"
        return {**record, "valid": False, "reason": reason, "message": message}
    try:
        scores = part_scores(task, submission)
    except SubmissionError as error:
        return {**record, "valid": False, "reason": error.reason, "message": str(error)}
    gain = task.sign * (scores["selection"] - task.baseline) / task.headroom
    return {
        **record,
        "valid": True,
        **scores,
        "baseline": task.baseline,
        "best": task.best,
        "headroom_reached": gain,
        **standing(task, scores["test"]),
    }


@contextmanager
def _prepared(folder: Path, options: Options) -> Iterator[Task]:
    """Yields the task: real data if it was imported, else what the folder makes."""
    prepared = _imported(folder, options)
    if prepared is not None:
        yield load_task(folder, prepared)
    elif options.data_dir is not None:
        root = Path(options.data_dir) / "tasks"
        root.mkdir(parents=True, exist_ok=True)
        yield prepare_task(folder, root / folder.name)
    else:
        with tempfile.TemporaryDirectory(prefix="mlagent_tasks_") as scratch:
            yield prepare_task(folder, Path(scratch) / folder.name)


def _imported(folder: Path, options: Options) -> Path | None:
    if options.real_data is None or read_spec(folder).real is None:
        return None
    return Path(options.real_data) / folder.name


def _executor(task: Task) -> Executor:
    return Executor({task.id: task}, EnvConfig())


def _known_folders(options: Options) -> list[Path]:
    root = Path(options.task_root)
    return sorted(path.parent for path in root.glob("*/task.toml"))


def _folder(name: str, options: Options) -> Path:
    """Returns the folder of a task.

    Raises:
      ConfigError: there is none; the nearest name is given.
    """
    known = [folder.name for folder in _known_folders(options)]
    if name not in known:
        near = nearest_name(name, known)
        raise ConfigError(f"no task {name!r} in {options.task_root}/{near}")
    return Path(options.task_root) / name


def _chosen_folders(words: Sequence[str], options: Options) -> list[Path]:
    if options.is_all:
        return _known_folders(options)
    if not words:
        known = ", ".join(folder.name for folder in _known_folders(options))
        raise ConfigError(f"name tasks or give --all; there are {known}")
    return [_folder(name, options) for name in words]


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def _expect(words: Sequence[str], number: int, message: str) -> None:
    if len(words) != number:
        raise ConfigError(message)


def _print_record(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)
