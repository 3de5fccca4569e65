"""Small records that many tests need: a task, steps, states and trajectories."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mlagent_jax.text.actions import parse_reply, render_action
from mlagent_jax.types import (
    Action,
    ActionKind,
    Limits,
    Outcome,
    State,
    StepRecord,
    StepStatus,
    Task,
    Trajectory,
)

SCRIPT = """\
import numpy as np
from sklearn import linear_model

features = np.load("data/train.npy")
model = linear_model.Ridge()
model.fit(features, labels)
"""


def make_task(**changes) -> Task:
    task = Task(
        id="toy",
        version=1,
        split="held_in",
        modality="tabular",
        description="Predict the toy target.\nMore about it.",
        metric="accuracy",
        direction="max",
        id_column="id",
        target_columns=("target",),
        starter={"train.py": SCRIPT},
        entry_script="train.py",
        baseline=0.5,
        baseline_std=0.0,
        best=0.9,
        limits=Limits(),
        public_dir=Path("public"),
        private_dir=Path("private"),
        file_hashes={},
    )
    return dataclasses.replace(task, **changes)


def make_edit(search: str, replace: str, thought: str = "") -> Action:
    return Action(
        kind=ActionKind.EDIT,
        path="train.py",
        blocks=((search, replace),),
        thought=thought,
    )


def make_step(
    action: Action | str,
    before: float = 0.5,
    after: float | None = None,
    outcome: Outcome | None = None,
    feedback: str = "",
    snapshots: tuple[str, str] = ("s0", "s1"),
) -> StepRecord:
    """A step by its action, or by a reply that may hold none."""
    reply = action if isinstance(action, str) else render_action(action)
    parsed = None if isinstance(action, str) else parse_reply(reply, max_chars=10**6)
    if outcome is None:
        outcome = Outcome.INFO if after is None else Outcome.SCORED
    is_edit = parsed is not None and parsed.kind is ActionKind.EDIT
    return StepRecord(
        reply=reply,
        action=parsed,
        reason="",
        outcome=outcome,
        status=StepStatus.ONGOING,
        feedback=feedback,
        diff="",
        snapshot_before=snapshots[0],
        snapshot_after=snapshots[1],
        score_before=before,
        score_after=before if after is None else after,
        is_edit=is_edit,
        execution=None,
        submission=None,
        isolation="bubblewrap",
        env_s=0.0,
    )


def make_state(steps: Sequence[StepRecord] = (), score: float = 0.5) -> State:
    return State(
        task_id="toy",
        task_version=1,
        snapshot=steps[-1].snapshot_after if steps else "s0",
        score=steps[-1].score_after if steps else score,
        steps=tuple(steps),
    )


def make_trajectory(
    name: str = "toy/expert/0000", steps: Sequence[StepRecord] = (), **changes
) -> Trajectory:
    trajectory = Trajectory(
        id=name,
        task_id="toy",
        task_version=1,
        policy="expert",
        seed=0,
        ideas=(),
        start_snapshot="s0",
        start_score=0.5,
        start_submission=None,
        steps=tuple(steps),
        status=StepStatus.SUBMITTED,
        usage={},
    )
    return dataclasses.replace(trajectory, **changes)
