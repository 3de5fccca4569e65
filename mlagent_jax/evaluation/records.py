"""What evaluation stores: one record a trajectory, one a fresh state and sample.

Test scores exist only here and in what is made from these files; they never enter
a prompt, a reward or the choice of a model (design decision 7).
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeVar

from mlagent_jax.data.jsonl import append_line, read_lines
from mlagent_jax.env.grading import grade
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.errors import DataError
from mlagent_jax.types import (
    Outcome,
    Split,
    StepRecord,
    Task,
    Trajectory,
    from_json,
    to_json,
)

RecordT = TypeVar("RecordT")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalRecord:
    """One evaluated trajectory.

    Attributes:
      trajectory: as recorded.
      split: of its task.
      start_score: test score of the starter's submission (m_init on these rows).
      final_score: test score of the submission that counts (see `eval.final`).
      selected_score: test score of the submission with the best selection score.
      relative_gain_percent: of `final_score`, see `relative_gain_percent`.
      selected_gain_percent: of `selected_score`.
      step_rewards: reward of every step under the run's preset, one a step.
    """

    trajectory: Trajectory
    split: Split
    start_score: float
    final_score: float
    selected_score: float
    relative_gain_percent: float
    selected_gain_percent: float
    step_rewards: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreshStepRecord:
    """One reply of a policy to a state that no training ever saw.

    Attributes:
      state_id: "<trajectory id>@<step>", the same for every policy.
      task_id: its task.
      sample: 0 .. samples_per_state - 1.
      outcome: typed feedback.
      reward: of the step under the run's preset.
    """

    state_id: str
    task_id: str
    sample: int
    outcome: Outcome
    reward: float


def relative_gain_percent(score: float, start: float, sign: float) -> float:
    """Returns sign * (score - start) / |start| * 100, the paper's A.8 measure.

    Args:
      score: m, of the final submission.
      start: m_init, of the starter on the same rows.
      sign: +1.0 if higher is better, else -1.0.
    """
    if score == start:
        return 0.0
    return 100.0 * sign * (score - start) / max(abs(start), 1e-12)


def score_trajectory(
    trajectory: Trajectory,
    task: Task,
    store: SnapshotStore,
    step_rewards: tuple[float, ...],
    final: Literal["last", "selection"] = "last",
) -> EvalRecord:
    """Returns `trajectory` with its submissions scored on the test part.

    Args:
      trajectory: as recorded.
      task: its task.
      store: holds the submissions.
      step_rewards: one a step.
      final: which submission counts: the last valid one that was not undone, or the
        one with the best selection score.

    Raises:
      DataError: the trajectory holds no submission of its own starter.
    """
    if trajectory.start_submission is None:
        raise DataError(f"{trajectory.id}: the starter of {task.id} left no submission")

    def test_score(submission: str) -> float:
        return grade(task, store.get_blob(submission), "test")

    start_score = test_score(trajectory.start_submission)
    last, best = trajectory.start_submission, trajectory.start_submission
    best_selection = task.sign * trajectory.start_score
    for step in current_steps(trajectory):
        if step.submission is None:
            continue
        last = step.submission
        if task.sign * step.score_after > best_selection:
            best, best_selection = step.submission, task.sign * step.score_after
    selected_score = test_score(best)
    final_score = selected_score if final == "selection" else test_score(last)
    for value in (start_score, final_score, selected_score):
        if not math.isfinite(value):
            raise DataError(f"{trajectory.id}: test score {value} of {task.id}")
    return EvalRecord(
        trajectory=trajectory,
        split=task.split,
        start_score=start_score,
        final_score=final_score,
        selected_score=selected_score,
        relative_gain_percent=relative_gain_percent(
            final_score, start_score, task.sign
        ),
        selected_gain_percent=relative_gain_percent(
            selected_score, start_score, task.sign
        ),
        step_rewards=step_rewards,
    )


def current_steps(trajectory: Trajectory) -> list[StepRecord]:
    """Returns the steps whose effect stands at the end, undone edits left out."""
    standing: list[StepRecord] = []
    for step in trajectory.steps:
        is_undo = (
            step.outcome is Outcome.INFO
            and step.action is not None
            and step.action.kind == "undo"
        )
        if is_undo:
            # An undo of one file among several changes leads to a new workspace.
            if any(s.snapshot_before == step.snapshot_after for s in standing):
                while standing.pop().snapshot_before != step.snapshot_after:
                    pass
        elif step.is_edit or step.submission is not None:
            standing.append(step)
    return standing


def iter_records(path: Path, cls: type[RecordT]) -> Iterator[RecordT]:
    """Yields the records of a JSONL file one at a time, none if there is no file.

    Raises:
      DataError: a line is damaged; the file and line are named.
    """
    return (from_json(cls, value, where) for value, where in read_lines(path))


def read_records(path: Path, cls: type[RecordT]) -> list[RecordT]:
    """Returns the records of a JSONL file, empty if there is none.

    Raises:
      DataError: a line is damaged; the file and line are named.
    """
    return list(iter_records(path, cls))


def append_record(path: Path, record: EvalRecord | FreshStepRecord) -> None:
    """Appends one line and makes sure that it reached the disk."""
    append_line(path, to_json(record))


def records_path(workdir: Path, policy: str) -> Path:
    """Returns where the records of a policy lie; fresh steps beside them."""
    return workdir / "eval" / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', policy)}.jsonl"
