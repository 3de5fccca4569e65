"""Checks and measures task folders.

    python -m launch.tasks check digits houses
    python -m launch.tasks check --all
    python -m launch.tasks measure --all --write

`check` runs the self-test of `env.task_check`. `measure` scores the starter with five
seeds, every move of moves.toml alone, and searches for the best combination; `--write`
puts the results into task.toml. Both prepare the data anew in a temporary folder.
"""

import dataclasses
import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from launch import common
from mlagent_jax.config import EnvConfig
from mlagent_jax.env.executor import Executor
from mlagent_jax.env.task import prepare_task
from mlagent_jax.env.task_check import (
    check_task,
    part_scores,
    run_script,
    standard_error,
)
from mlagent_jax.env.task_rules import nearest_name
from mlagent_jax.errors import ConfigError, MlAgentError
from mlagent_jax.explore.ideas import MOVES_FILE, read_moves
from mlagent_jax.policy.moves import Move
from mlagent_jax.types import Task

_ALL = flags.DEFINE_bool("all", False, "Every task of --task_root.")
_TASK_ROOT = flags.DEFINE_string("task_root", "tasks", "Folder of task folders.")
_WRITE = flags.DEFINE_bool("write", False, "measure: update [scores] of task.toml.")

NUM_SEEDS = 5
_MAX_COMBINED = 7
_BEAM_WIDTH = 2
_MIN_GAIN_FRAC = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One scored script run.

    Attributes:
      selection: score on the selection part, NaN if there was no valid submission.
      test: score on the test part, likewise.
      seconds: wall-clock time of the run.
      submission: the graded file, None if it was not valid.
    """

    selection: float
    test: float
    seconds: float
    submission: bytes | None

    @property
    def mean(self) -> float:
        """Mean of both parts' scores."""
        return (self.selection + self.test) / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is known about a task.

    Attributes:
      starter: the starter as it stands.
      seed_mean: mean over seeds of its score, both parts together.
      seed_std: standard deviation over seeds.
      moves: every move alone.
      best: the best combination of moves that was found.
      best_from: ids of its moves, in order.
      stderr: largest bootstrap standard error of starter and best on one part.
    """

    starter: Run
    seed_mean: float
    seed_std: float
    moves: dict[Move, Run]
    best: Run
    best_from: tuple[str, ...]
    stderr: float


def measure_task(task: Task, moves: Sequence[Move], executor: Executor) -> Measurement:
    """Returns the measured scores of a task."""
    script = task.starter[task.entry_script]
    seeds = [
        _run(task, script.replace("random_state=0", f"random_state={seed}"), executor)
        for seed in range(NUM_SEEDS)
    ]
    starter = seeds[0]
    alone = {
        move: _run(task, changed, executor)
        for move in moves
        if (changed := make_move(move, script)) is not None
    }
    working = [m for m, run in alone.items() if run.submission is not None]
    best, best_from = _search(task, working, script, starter, executor)
    means = [run.mean for run in seeds]
    return Measurement(
        starter=starter,
        seed_mean=float(np.mean(means)),
        seed_std=float(np.std(means)),
        moves=alone,
        best=best,
        best_from=best_from,
        stderr=max(
            standard_error(task, run.submission)
            for run in (starter, best)
            if run.submission is not None
        ),
    )


def _search(
    task: Task, moves: Sequence[Move], script: str, starter: Run, executor: Executor
) -> tuple[Run, tuple[str, ...]]:
    """Returns the best combination found by a beam search on the selection part."""
    runs = {script: starter}
    beam: list[tuple[str, tuple[str, ...]]] = [(script, ())]
    best, best_from = starter, ()
    for _ in range(_MAX_COMBINED):
        found: dict[str, tuple[str, ...]] = {}
        for parent, path in beam:
            for move in moves:
                changed = make_move(move, parent)
                if changed is None or changed in runs:
                    continue
                runs[changed] = _run(task, changed, executor)
                gain = task.sign * (runs[changed].selection - runs[parent].selection)
                if gain > 0:
                    found[changed] = (*path, move.id)
        if not found:
            break
        ranked = sorted(found, key=lambda s: -task.sign * runs[s].selection)
        beam = [(s, found[s]) for s in ranked[:_BEAM_WIDTH]]
        gain = task.sign * (runs[ranked[0]].selection - best.selection)
        # Smaller gains are luck of the selection part.
        if gain > _MIN_GAIN_FRAC * abs(best.selection - starter.selection):
            best, best_from = runs[ranked[0]], found[ranked[0]]
    return best, best_from


def make_move(move: Move, script: str) -> str | None:
    """Returns `script` after a move, None if it does not apply or is made already."""
    match = re.compile(move.find, re.MULTILINE).search(script)
    if match is None or f"\n{move.code}\n" in f"\n{script}\n":
        return None
    return script[: match.start()] + move.code + script[match.end() :]


def format_measurement(task: Task, result: Measurement) -> str:
    """Returns a table of one task's scores; `+` marks moves that improve."""
    gap = abs(result.best.mean - result.starter.mean)
    lines = [
        f"{task.id}: {task.metric} ({task.direction}), "
        f"baseline {result.starter.mean:.4g} "
        f"({result.seed_mean:.4g} +- {result.seed_std:.2g} over seeds), "
        f"best {result.best.mean:.4g} from {', '.join(result.best_from)}, "
        f"standard error {result.stderr:.2g} "
        f"({result.stderr / gap:.1%} of the gap)",
        f"  {'starter':12} {_format_run(result.starter)}",
    ]
    num_better = 0
    for move, run in result.moves.items():
        is_better = task.sign * (run.selection - result.starter.selection) > 0
        num_better += is_better
        mark = "+" if is_better else "!" if run.submission is None else " "
        lines.append(f"{mark} {move.id:12} {_format_run(run)}  {move.say}")
    share = num_better / max(1, len(result.moves))
    lines.append(f"  {num_better} of {len(result.moves)} moves improve ({share:.0%})")
    return "\n".join(lines)


def write_scores(folder: Path, result: Measurement) -> None:
    """Replaces the [scores] table of the folder's task.toml."""
    path = folder / "task.toml"
    text = path.read_text(encoding="utf-8")
    scores = (
        "[scores]\n"
        f"baseline = {result.starter.mean:.5g}\n"
        f"seed_mean = {result.seed_mean:.5g}\n"
        f"seed_std = {result.seed_std:.2g}\n"
        f"best = {result.best.mean:.5g}\n"
        f'best_from = "moves {", ".join(result.best_from)}"\n'
        f"stderr = {result.stderr:.2g}\n"
    )
    # toml has floats and integers; all scores are floats.
    scores = re.sub(r"(= -?\d+)$", r"\1.0", scores, flags=re.MULTILINE)
    changed = re.sub(r"\[scores\]\n(?:[^\[\n].*\n)*", lambda _: scores, text)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(changed, encoding="utf-8")
    os.replace(partial, path)


def _run(task: Task, script: str, executor: Executor) -> Run:
    start = time.monotonic()
    submission = run_script(task, script, executor)
    seconds = time.monotonic() - start
    if submission is None:
        nan = float("nan")
        return Run(selection=nan, test=nan, seconds=seconds, submission=None)
    scores = part_scores(task, submission)
    return Run(
        selection=scores["selection"],
        test=scores["test"],
        seconds=seconds,
        submission=submission,
    )


def _format_run(run: Run) -> str:
    return f"{run.selection:9.4f} {run.test:9.4f} {run.seconds:6.2f} s"


def _task_folders(names: Sequence[str]) -> list[Path]:
    root = Path(_TASK_ROOT.value)
    known = sorted(path.parent.name for path in root.glob("*/task.toml"))
    chosen = known if _ALL.value else list(names)
    if not chosen:
        raise ConfigError(f"name tasks or give --all; {root} has {', '.join(known)}")
    for name in chosen:
        if name not in known:
            raise ConfigError(f"no task {name!r} in {root}/{nearest_name(name, known)}")
    return [root / name for name in chosen]


def _check(folder: Path, task: Task, executor: Executor) -> bool:
    problems = check_task(folder, task, executor)
    print(f"{task.id}: {'; '.join(problems) or 'ok'}", flush=True)
    return not problems


def _measure(folder: Path, task: Task, executor: Executor) -> bool:
    result = measure_task(task, read_moves(folder / MOVES_FILE), executor)
    print(format_measurement(task, result), flush=True)
    if _WRITE.value:
        write_scores(folder, result)
    return True


def _main(argv: list[str]) -> None:
    commands = {"check": _check, "measure": _measure}
    if len(argv) < 2 or argv[1] not in commands:
        common.fail("expected `check` or `measure`, then task ids or --all")
    try:
        folders = _task_folders(argv[2:])
        with tempfile.TemporaryDirectory() as prepared:
            tasks = [prepare_task(f, Path(prepared) / f.name) for f in folders]
            by_id = {task.id: task for task in tasks}
            with Executor(by_id, EnvConfig()) as executor:
                results = [
                    commands[argv[1]](folder, task, executor)
                    for folder, task in zip(folders, tasks, strict=True)
                ]
    except MlAgentError as error:
        common.fail(str(error))
    else:
        if not all(results):
            common.fail("some tasks are not right", status=1)


if __name__ == "__main__":
    app.run(_main)
