"""From a state and what was done there to the next state."""

import dataclasses
from collections.abc import Iterator

from mlagent_jax.types import ActionKind, Outcome, State, StepRecord, Trajectory


def start_state(trajectory: Trajectory) -> State:
    """Returns the state before the first step of a trajectory."""
    return State(
        task_id=trajectory.task_id,
        task_version=trajectory.task_version,
        snapshot=trajectory.start_snapshot,
        score=trajectory.start_score,
    )


def walk(trajectory: Trajectory) -> Iterator[tuple[State, StepRecord]]:
    """Yields every step of a trajectory with the state that it started from."""
    state = start_state(trajectory)
    for step in trajectory.steps:
        yield state, step
        state = advance(state, step)


def advance(state: State, step: StepRecord) -> State:
    """Returns the state after `step`: its files, its score, its history.

    Every executed edit can be undone, also one whose script failed; an undo takes
    back one edit.
    """
    previous = state.previous_snapshots
    if step.is_edit:
        previous = (*previous, (step.snapshot_before, step.score_before))
    elif _is_undone(step):
        previous = previous[:-1]
    return dataclasses.replace(
        state,
        snapshot=step.snapshot_after,
        score=step.score_after,
        steps=(*state.steps, step),
        previous_snapshots=previous,
    )


def _is_undone(step: StepRecord) -> bool:
    is_undo = step.action is not None and step.action.kind is ActionKind.UNDO
    return is_undo and step.outcome is not Outcome.INVALID_ACTION
