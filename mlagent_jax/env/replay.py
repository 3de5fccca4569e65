"""Repeats recorded steps and finds the first thing that comes out otherwise.

Compared is all that decides a step or is shown to the agent. Times, memory and what a
script printed before a limit stopped it depend on the machine and are left out, and so
is the isolation level, which is a fact about the machine and not about the step.
"""

import dataclasses
from typing import Any, NamedTuple

from mlagent_jax.env.advance import advance
from mlagent_jax.env.environment import Environment
from mlagent_jax.errors import DataError
from mlagent_jax.types import CORNER_CASES, Outcome, State, StepRecord, Trajectory

_STEP_FIELDS = (
    "profile",
    "task_version",
    "action",
    "reason",
    "outcome",
    "feedback",
    "diff",
    "snapshot_before",
    "snapshot_after",
    "score_before",
    "score_after",
    "is_edit",
    "submission",
    "integrity_events",
)
_EXECUTION_FIELDS = (
    "outcome",
    "exit_code",
    "signal",
    "stdout_bytes",
    "stdout",
    "stderr_bytes",
    "stderr",
)


class Divergence(NamedTuple):
    """The first difference between a record and its repetition.

    Attributes:
      step: number of the step, from 1; 0 is the start of the trajectory.
      field: what differs, e.g. "score_after" or "execution.stdout".
      expected: the recorded value.
      got: the value of the repetition.
    """

    step: int
    field: str
    expected: Any
    got: Any


def replay_trajectory(
    trajectory: Trajectory, environment: Environment
) -> Divergence | None:
    """Returns the first divergence of `trajectory`, None if all comes out the same.

    Args:
      trajectory: the record.
      environment: has the task, the profile and a store that holds the start snapshot;
        must execute (no cache), or nothing is proven.

    Raises:
      DataError: the task is of another version now.
    """
    start = environment.reset(trajectory.task_id)
    task_version = start.state.task_version
    if task_version != trajectory.task_version:
        raise DataError(
            f"trajectory {trajectory.id!r} was recorded on version "
            f"{trajectory.task_version} of task {trajectory.task_id!r}, which is "
            f"version {task_version} now"
        )
    for field, expected, got in [
        ("start_snapshot", trajectory.start_snapshot, start.state.snapshot),
        ("start_score", trajectory.start_score, start.state.score),
        ("start_submission", trajectory.start_submission, start.submission),
    ]:
        if expected != got:
            return Divergence(0, field, expected, got)
    state: State = start.state
    for number, recorded in enumerate(trajectory.steps, 1):
        repeated = environment.step(state, recorded.reply, recorded.edit)
        found = compare_steps(recorded, repeated)
        if found is not None:
            return found._replace(step=number)
        state = advance(state, repeated)
    return None


def compare_steps(recorded: StepRecord, repeated: StepRecord) -> Divergence | None:
    """Returns the first difference of two steps; its number is 0."""
    first = _first_of("execution.", recorded.execution, repeated.execution)
    by_name = {f.name for f in dataclasses.fields(StepRecord)}
    for field in _STEP_FIELDS:
        assert field in by_name
        expected, got = getattr(recorded, field), getattr(repeated, field)
        if expected != got:
            # How the script ended says more than what followed from it.
            follows = field in {"outcome", "feedback", "diff", "snapshot_after"}
            return (
                first if first is not None and follows else _made(field, expected, got)
            )
    return first


def _first_of(prefix: str, recorded: Any, repeated: Any) -> Divergence | None:
    if (recorded is None) != (repeated is None):
        return _made(prefix.rstrip("."), recorded, repeated)
    if recorded is None:
        return None
    is_cut = {recorded.outcome, repeated.outcome} & CORNER_CASES
    fields = _EXECUTION_FIELDS
    if recorded.outcome is Outcome.INFO:
        fields = _EXECUTION_FIELDS[:-2]  # nobody reads the warnings of a good run
    if is_cut:
        fields = _EXECUTION_FIELDS[:1]
    for field in fields:
        expected, got = getattr(recorded, field), getattr(repeated, field)
        if expected != got:
            return _made(prefix + field, expected, got)
    return None


def _made(field: str, expected: Any, got: Any) -> Divergence:
    return Divergence(0, field, expected, got)
