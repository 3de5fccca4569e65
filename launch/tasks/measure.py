"""Measures a task: its starter over seeds, every move alone, the best combination.

The numbers go into task.toml, or, for real data, into a file beside the data.
"""

import dataclasses
import math
import os
import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlagent_jax.env.baseline import Baseline, hash_starter
from mlagent_jax.env.executor import Executor
from mlagent_jax.env.task_check import part_scores, run_script, standard_error
from mlagent_jax.env.task_folder import read_spec
from mlagent_jax.errors import TaskError
from mlagent_jax.policy.moves import Move
from mlagent_jax.types import Task

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


def measure_task(
    task: Task,
    moves: Sequence[Move],
    executor: Executor,
    *,
    is_quick: bool = False,
    first: Sequence[str] = (),
) -> Measurement:
    """Returns the measured scores of a task.

    Args:
      task: with data that it made itself.
      moves: what the scripted expert knows.
      executor: runs the scripts.
      is_quick: try each improving move once on top of the better ones, instead of
        searching combinations.
      first: ids of moves that the quick search makes before others.

    Raises:
      TaskError: the starter writes no valid submission.
    """
    script = task.starter[task.entry_script]
    seeds = _run_seeds(task, NUM_SEEDS, executor)
    starter = seeds[0]
    alone = {
        move: _run(task, changed, executor)
        for move in moves
        if (changed := make_move(move, script)) is not None
    }
    working = [m for m, run in alone.items() if run.submission is not None]
    if is_quick:
        best, best_from = _climb(task, alone, first, starter, executor)
    else:
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


def measure_baseline(task: Task, num_seeds: int, executor: Executor) -> Baseline:
    """Returns what the starter scores, for real data.

    Raises:
      TaskError: the starter writes no valid submission.
    """
    runs = _run_seeds(task, num_seeds, executor)
    means = [run.mean for run in runs]
    assert runs[0].submission is not None
    return Baseline(
        baseline=runs[0].mean,
        seed_mean=float(np.mean(means)),
        seed_std=float(np.std(means)),
        num_seeds=num_seeds,
        stderr=standard_error(task, runs[0].submission),
        wall_s=float(np.median([run.seconds for run in runs])),
        hardware=f"{platform.machine()}, {os.cpu_count()} cores",
        starter_hash=hash_starter(task.starter),
    )


def _run_seeds(task: Task, num_seeds: int, executor: Executor) -> list[Run]:
    script = task.starter[task.entry_script]
    runs = [
        _run(task, script.replace("random_state=0", f"random_state={seed}"), executor)
        for seed in range(num_seeds)
    ]
    if any(run.submission is None for run in runs):
        raise TaskError(f"{task.id}: {task.entry_script} writes no valid submission")
    return runs


def _climb(
    task: Task,
    alone: dict[Move, Run],
    first: Sequence[str],
    starter: Run,
    executor: Executor,
) -> tuple[Run, tuple[str, ...]]:
    """Returns the best run when moves are added one by one, the best alone first."""
    script = task.starter[task.entry_script]
    best, best_from = starter, ()
    for move in alone:
        changed = make_move(move, script)
        if move.id in first and changed is not None:
            script, best_from = changed, (*best_from, move.id)
    if best_from:
        best = _run(task, script, executor)
    ranked = sorted(
        (move for move, run in alone.items() if run.submission is not None),
        key=lambda move: -task.sign * alone[move].selection,
    )
    for move in ranked:
        made = {move_id.partition("/")[0] for move_id in best_from}
        changed = make_move(move, script)
        if changed is None or move.dimension in made:
            continue
        run = _run(task, changed, executor) if best_from else alone[move]
        gain = task.sign * (run.selection - best.selection)
        # Smaller gains are luck of the selection part.
        if gain > _MIN_GAIN_FRAC * abs(best.selection - starter.selection):
            script, best, best_from = changed, run, (*best_from, move.id)
    return best, best_from


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
    gap = abs(result.best.mean - result.starter.mean) or math.inf
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
    """Replaces the [scores] table of the folder's task.toml.

    Where no move improves the starter, the best score is the metric's perfect one.
    """
    path = folder / "task.toml"
    best, best_from = result.best.mean, f"moves {', '.join(result.best_from)}"
    if not result.best_from:
        best = read_spec(folder).metric.perfect
        best_from = "the metric's perfect score: no move improves the starter"
    text = path.read_text(encoding="utf-8")
    scores = (
        "[scores]\n"
        f"baseline = {result.starter.mean:.5g}\n"
        f"seed_mean = {result.seed_mean:.5g}\n"
        f"seed_std = {result.seed_std:.2g}\n"
        f"best = {best:.5g}\n"
        f'best_from = "{best_from}"\n'
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
