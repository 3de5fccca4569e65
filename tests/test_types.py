"""Records survive JSON; damaged ones are refused with the place named."""

import dataclasses
import json

import pytest

from mlagent_jax.errors import DataError
from mlagent_jax.types import (
    Action,
    ActionKind,
    ExecResult,
    Outcome,
    StepRecord,
    StepStatus,
    Trajectory,
    from_json,
    to_json,
)

EXECUTION = ExecResult(
    outcome=Outcome.INFO,
    exit_code=0,
    signal=None,
    wall_s=0.25,
    cpu_s=0.125,
    max_rss_bytes=1 << 20,
    stdout="ok ✓\n",
    stderr="",
    stdout_bytes=6,
    stderr_bytes=0,
)
STEP = StepRecord(
    reply='<edit path="train.py">',
    action=Action(kind=ActionKind.EDIT, path="train.py", blocks=(("a", "b"),)),
    reason="",
    outcome=Outcome.SCORED,
    status=StepStatus.ONGOING,
    feedback="Score: 0.7",
    diff="-a\n+b\n",
    snapshot_before="s0",
    snapshot_after="s1",
    score_before=0.5,
    score_after=0.7,
    is_edit=True,
    execution=EXECUTION,
    submission="blob",
    isolation="bubblewrap",
    env_s=0.01,
)
TRAJECTORY = Trajectory(
    id="digits/expert/0001",
    task_id="digits",
    task_version=1,
    policy="expert",
    seed=7,
    ideas=("use a forest",),
    start_snapshot="s0",
    start_score=0.5,
    start_submission="blob0",
    steps=(STEP, dataclasses.replace(STEP, action=None, execution=None)),
    status=StepStatus.SUBMITTED,
    usage={"wall_s": 1.5},
)


def test_a_trajectory_survives_json():
    text = json.dumps(to_json(TRAJECTORY))
    assert from_json(Trajectory, json.loads(text)) == TRAJECTORY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("seed"), r"missing fields \['seed'\]"),
        (lambda v: v.update(extra=1), r"unknown fields \['extra'\]"),
        (lambda v: v.update(seed="7"), r"file:3\.seed: expected an integer"),
        (lambda v: v.update(start_score=True), "start_score: expected a number"),
        (lambda v: v.update(status="done"), "status: expected one of"),
        (lambda v: v["steps"][0].update(outcome=1), "outcome: expected one of"),
        (lambda v: v.update(steps={}), "steps: expected a list"),
    ],
)
def test_a_damaged_record_is_refused_with_its_place(change, message):
    value = json.loads(json.dumps(to_json(TRAJECTORY)))
    change(value)
    with pytest.raises(DataError, match=message):
        from_json(Trajectory, value, "file:3")
