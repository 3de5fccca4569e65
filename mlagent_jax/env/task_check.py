"""The self-test of a task: what must hold for every folder under tasks/.

The data can be made again bit for bit; the labels score perfectly and a submission
without information is valid; rows and columns may come in any order; broken files are
refused for the right reason; the starter still scores what task.toml says.
"""

# pandas describes its types only in part; strict mode would report nothing but that.
# pyright: standard

import io
from pathlib import Path
from typing import Protocol, get_args

import numpy as np
import pandas as pd

from mlagent_jax.env import grading
from mlagent_jax.env.archive import hash_file
from mlagent_jax.env.executor import Execution
from mlagent_jax.env.task import rebuild_hashes
from mlagent_jax.env.task_folder import read_spec
from mlagent_jax.errors import SubmissionError
from mlagent_jax.types import Part, Task

# Deviations of the starter's score that other library versions may cause.
MAX_BASELINE_DEVIATIONS = 4.0


class ScriptRunner(Protocol):
    """What is needed of an `env.executor.Executor`."""

    def run(self, task_id: str, files: dict[str, bytes], script: str) -> Execution:
        """Runs a script in a fresh workspace."""
        ...


def check_task(folder: Path, task: Task, executor: ScriptRunner) -> list[str]:
    """Returns what is wrong with a task, empty if nothing is.

    Args:
      folder: its folder under tasks/.
      task: the task as it was prepared.
      executor: runs the starter once.
    """
    problems: list[str] = []
    if task.source != "real" and rebuild_hashes(folder) != task.file_hashes:
        problems.append("prepare.py gives other files when it runs again")
    if task.source == "real":
        problems += _check_hashes(task)
    problems += check_grading(task)
    submission = run_script(task, task.starter[task.entry_script], executor)
    if submission is None:
        return [*problems, f"{task.entry_script} writes no valid submission"]
    problems += _check_order(task, submission)
    problems += _check_baseline(folder, task, submission)
    return problems


def check_grading(task: Task) -> list[str]:
    """Returns what is wrong with how a task's submissions are graded; runs nothing."""
    gold = _gold(task).to_csv(index=False).encode()
    return [*_check_gold(task), *_check_broken(task), *_check_order(task, gold)]


def run_script(task: Task, script: str, executor: ScriptRunner) -> bytes | None:
    """Returns the valid submission of an entry script, None if there is none."""
    files = {name: text.encode() for name, text in task.starter.items()}
    files[task.entry_script] = script.encode()
    submission = executor.run(task.id, files, task.entry_script).submission
    if submission is None:
        return None
    try:
        grading.read_submission(submission, task)
    except SubmissionError:
        return None
    return submission


def part_scores(task: Task, submission: bytes) -> dict[Part, float]:
    """Returns the score of a valid submission on each hidden part."""
    return {part: grading.grade(task, submission, part) for part in get_args(Part)}


def standard_error(task: Task, submission: bytes, num_resamples: int = 200) -> float:
    """Returns the larger of both parts' bootstrap standard errors of the score."""
    labels = grading.read_labels(task)
    predictions = grading.read_submission(submission, task)
    rng = np.random.default_rng(0)
    errors: list[float] = []
    for part in get_args(Part):
        rows = np.flatnonzero(labels[grading.PART_COLUMN] == part)
        scores: list[float] = []
        for _ in range(num_resamples):
            drawn = rng.choice(rows, len(rows))
            scores.append(
                grading.score_rows(task, labels.take(drawn), predictions.take(drawn))
            )
        errors.append(float(np.std(scores)))
    return max(errors)


def broken_submissions(task: Task) -> dict[str, bytes]:
    """Returns reason -> a submission that must be refused for that reason."""
    gold = _gold(task)
    first, target = task.id_column, task.target_columns[0]
    broken: dict[str, str | bytes] = {
        "empty_file": "",
        "not_text": b"\xff\xfe" + gold.to_csv(index=False).encode(),
        "not_csv": gold.to_csv(index=False) + "1,2,3,4,5,6,7,8,9,10,11,12,13,14\n",
        "wrong_columns": gold.assign(extra=0).to_csv(index=False),
        "duplicate_ids": pd.concat([gold, gold.head(1)]).to_csv(index=False),
        "missing_ids": gold.iloc[1:].to_csv(index=False),
        "unknown_ids": gold.replace({first: {gold[first].iloc[0]: "no"}}).to_csv(
            index=False
        ),
        "missing_values": _with_value(gold, target, ""),
    }
    kind = grading.METRICS[task.metric].kind
    if kind == "class":
        broken["unknown_class"] = _with_value(gold, target, "no_such_class")
    elif kind == "ranking":
        broken["bad_ranking"] = _with_value(gold, target, "no_such_class")
    else:
        broken["not_numeric"] = _with_value(gold, target, "many")
        broken["out_of_range"] = _with_value(gold, target, "inf")
        broken["missing_values"] = _with_value(gold, target, "nan")
    return {
        reason: data if isinstance(data, bytes) else data.encode()
        for reason, data in broken.items()
    }


def _check_hashes(task: Task) -> list[str]:
    """Returns which files of real data changed; a run compares large ones by size."""
    root = task.public_dir.parent
    return [
        f"{root / name} changed since it was imported"
        for name, expected in task.file_hashes.items()
        if hash_file(root / name) != expected
    ]


def _gold(task: Task) -> pd.DataFrame:
    labels = grading.read_labels(task)
    # A copy is one block, whatever the number of target columns.
    return labels.drop(columns=grading.PART_COLUMN).astype(object).copy()


def _with_value(table: pd.DataFrame, column: str, value: str) -> str:
    changed = table.copy()
    changed.loc[changed.index[0], column] = value
    return changed.to_csv(index=False)


def _check_gold(task: Task) -> list[str]:
    perfect = grading.METRICS[task.metric].perfect
    gold = _gold(task).to_csv(index=False).encode()
    problems = [
        f"the labels score {score} on part {part}, not {perfect}"
        for part, score in part_scores(task, gold).items()
        if abs(score - perfect) > 1e-9
    ]
    try:
        sample = (task.public_dir / task.sample_file).read_bytes()
        part_scores(task, sample)
    except SubmissionError as error:
        problems.append(f"{task.sample_file} is refused: {error}")
    return problems


def _check_broken(task: Task) -> list[str]:
    problems: list[str] = []
    for reason, data in broken_submissions(task).items():
        try:
            grading.read_submission(data, task)
            problems.append(f"a submission with {reason} is accepted")
        except SubmissionError as error:
            if error.reason != reason:
                problems.append(f"{reason} is refused as {error.reason}")
    return problems


def _check_order(task: Task, submission: bytes) -> list[str]:
    table = pd.read_csv(io.BytesIO(submission), dtype=str, keep_default_na=False)
    rows = np.random.default_rng(0).permutation(len(table))
    shuffled = table.iloc[rows, ::-1].to_csv(index=False).encode()
    if part_scores(task, shuffled) != part_scores(task, submission):
        return ["the score depends on the order of rows or columns"]
    return []


def _check_baseline(folder: Path, task: Task, submission: bytes) -> list[str]:
    # What the folder says now: `task` may be older than a measurement.
    spec = read_spec(folder)
    said, std, stderr, where = spec.baseline, spec.seed_std, spec.stderr, "task.toml"
    if task.source == "real":
        said, std, where = task.baseline, task.baseline_std, "its measurement"
        stderr = standard_error(task, submission)
    score = float(np.mean(list(part_scores(task, submission).values())))
    if abs(score - said) > MAX_BASELINE_DEVIATIONS * max(std, stderr):
        return [f"the starter scores {score:.4g}, {where} says {said:.4g}"]
    return []
