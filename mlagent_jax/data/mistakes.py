"""Mistakes put into expert trajectories, so that recovering from one is learnt.

An expert that makes no mistakes never shows how to go on after one, so a model that
imitates it makes its first mistake and, in a state it has never seen, the next. Here
refused replies are put between the expert's steps, of the kinds that such models give:
an undo where nothing can be undone, an earlier edit once more, quoting the file as it
was or as it is. They cost no execution, they are never a target, and what follows is
the expert's own next reply. It is the idea of
noise injection (Laskey et al. 2017, "DART"); the paper has no such step, its model
starts from pretrained weights.
"""

import dataclasses
import random
from collections.abc import Iterator

from mlagent_jax.env.advance import advance
from mlagent_jax.env.feedback import action_text
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.undo import undo_file, undo_last
from mlagent_jax.env.workspace import apply_action
from mlagent_jax.errors import ActionError
from mlagent_jax.text.profiles import Profile, get_profile
from mlagent_jax.types import (
    Action,
    ActionKind,
    Outcome,
    State,
    StepRecord,
    StepStatus,
    Task,
    Trajectory,
)


def add_mistakes(
    trajectory: Trajectory, task: Task, store: SnapshotStore, frac: float, seed: int
) -> Trajectory:
    """Returns `trajectory` with refused replies put between its steps.

    Args:
      trajectory: of an expert.
      task: its task.
      store: its snapshots.
      frac: probability of a mistake before a step, and of one more after each.
      seed: determines the mistakes together with the trajectory's id.
    """
    if not frac or not trajectory.steps:
        return trajectory
    rng = random.Random(f"{seed}/{trajectory.id}")
    profile = get_profile(trajectory.steps[0].profile)
    state = State(
        task_id=trajectory.task_id,
        task_version=trajectory.task_version,
        snapshot=trajectory.start_snapshot,
        score=trajectory.start_score,
    )
    for step in trajectory.steps:
        while rng.random() < frac:
            mistakes = list(possible_mistakes(state, step, task, store, profile))
            if not mistakes:
                break
            # An undo has one form, edits may have many: draw the kind first.
            kinds = sorted({mistake.reason for mistake in mistakes})
            kind = rng.choice(kinds)
            chosen = rng.choice([m for m in mistakes if m.reason == kind])
            state = advance(state, chosen)
        state = advance(state, step)
    return dataclasses.replace(trajectory, steps=state.steps)


def possible_mistakes(
    state: State, step: StepRecord, task: Task, store: SnapshotStore, profile: Profile
) -> Iterator[StepRecord]:
    """Yields what the environment would record of the mistakes possible in `state`.

    Args:
      state: where the mistake is made.
      step: any recorded step of the same run; its settings are those of the records.
      task: of the state.
      store: holds the state's workspace.
      profile: how replies are written.
    """
    undo = profile.express(Action(kind=ActionKind.UNDO), task.entry_script)
    earlier = [
        step.action
        for step in state.steps
        if step.action is not None and step.action.kind is ActionKind.EDIT
    ]
    again = [
        dataclasses.replace(edit, blocks=tuple((new, new) for _, new in edit.blocks))
        for edit in earlier
        if all(new for _, new in edit.blocks)
    ]
    for action in dict.fromkeys((undo, *earlier, *again)):
        error = _refusal(state, action, store)
        if error is None:
            continue
        yield dataclasses.replace(
            step,
            reply=profile.render_action(action),
            action=action,
            reason=error.reason,
            outcome=Outcome.INVALID_ACTION,
            status=StepStatus.ONGOING,
            feedback=action_text(error),
            diff="",
            snapshot_before=state.snapshot,
            snapshot_after=state.snapshot,
            score_before=state.score,
            score_after=state.score,
            is_edit=False,
            execution=None,
            submission=None,
            env_s=0.0,
            edit=None,
            reward_parts={},
            integrity_events=(),
            cache_check="",
        )


def _refusal(state: State, action: Action, store: SnapshotStore) -> ActionError | None:
    """Returns why the environment refuses `action`, None if it does not."""
    try:
        if action.kind is not ActionKind.UNDO:
            apply_action(store.get(state.snapshot), action)
        elif action.path is None:
            undo_last(state)
        else:
            undo_file(state, action.path, store)
    except ActionError as error:
        return error
    return None
