"""From a state and what was done there to the next state."""

import dataclasses

from mlagent_jax.types import ActionKind, Outcome, State, StepRecord


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
