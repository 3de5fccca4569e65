"""Replaying records: same, or the first field that is not."""

import dataclasses
import json

import pytest

from launch.replay import format_result, read_trajectories
from mlagent_jax.config import EnvConfig
from mlagent_jax.data.trajectories import TrajectoryFile, TrajectoryWriter
from mlagent_jax.env.advance import advance
from mlagent_jax.env.replay import compare_steps, replay_trajectory
from mlagent_jax.errors import DataError
from mlagent_jax.text.actions import render_action
from mlagent_jax.types import (
    TRAJECTORY_FORMAT,
    Action,
    ActionKind,
    Outcome,
    Trajectory,
    from_json,
    to_json,
)
from tests.fakes import make_fake_environment, make_graded_task
from tests.samples import make_trajectory


def write(script):
    return render_action(Action(kind=ActionKind.WRITE, path="train.py", content=script))


REPLIES = (write("right 30\n"), "nonsense", write("warn x\nexit 3\n"), "<undo/>")


@pytest.fixture(name="env")
def fixture_env(tmp_path):
    task = make_graded_task(tmp_path / "task")
    cfg = EnvConfig(use_cache=False)
    return make_fake_environment({"toy": task}, tmp_path / "store", cfg)


@pytest.fixture(name="trajectory")
def fixture_trajectory(env):
    start = env.reset("toy")
    state = start.state
    for reply in REPLIES:
        state = advance(state, env.step(state, reply))
    return make_trajectory(
        start_snapshot=start.state.snapshot,
        start_score=start.state.score,
        start_submission=start.submission,
        steps=state.steps,
    )


def changed(trajectory, number, **changes):
    steps = list(trajectory.steps)
    steps[number - 1] = dataclasses.replace(steps[number - 1], **changes)
    return dataclasses.replace(trajectory, steps=tuple(steps))


def test_a_true_record_comes_out_the_same(env, trajectory):
    assert replay_trajectory(trajectory, env) is None
    assert "same in all 4 steps" in format_result(trajectory, None)


def test_times_and_isolation_are_not_compared(env, trajectory):
    other = changed(trajectory, 1, env_s=99.0, isolation="bubblewrap")
    assert replay_trajectory(other, env) is None


@pytest.mark.parametrize(
    ("number", "changes", "field"),
    [
        (1, {"score_after": 0.9}, "score_after"),
        (1, {"feedback": "Score: 1."}, "feedback"),
        (2, {"reason": "several_actions"}, "reason"),
        (3, {"outcome": Outcome.TIMEOUT}, "outcome"),
        (4, {"snapshot_after": "0" * 64}, "snapshot_after"),
        (4, {"integrity_events": ("protected_file:x",)}, "integrity_events"),
    ],
)
def test_the_first_difference_is_named(env, trajectory, number, changes, field):
    found = replay_trajectory(changed(trajectory, number, **changes), env)
    assert (found.step, found.field) == (number, field)
    assert found.expected == next(iter(changes.values()))
    assert f"DIVERGES at step {number} in {field}" in format_result(trajectory, found)


def test_how_a_script_ended_comes_before_what_followed(env, trajectory):
    step = trajectory.steps[2]
    execution = dataclasses.replace(step.execution, exit_code=4)
    other = changed(trajectory, 3, execution=execution, feedback="exit code 4")
    found = replay_trajectory(other, env)
    assert (found.field, found.expected, found.got) == ("execution.exit_code", 4, 3)


def test_what_a_limit_cut_off_is_not_compared(trajectory):
    step = trajectory.steps[2]
    cut = dataclasses.replace(step.execution, outcome=Outcome.TIMEOUT)
    other = dataclasses.replace(cut, stdout="more", stdout_bytes=4)
    assert (
        compare_steps(
            dataclasses.replace(step, execution=cut),
            dataclasses.replace(step, execution=other),
        )
        is None
    )


def test_another_start_or_version_is_seen(env, trajectory):
    other = dataclasses.replace(trajectory, start_score=0.1)
    assert replay_trajectory(other, env)[:2] == (0, "start_score")
    with pytest.raises(DataError, match="recorded on version 7"):
        replay_trajectory(dataclasses.replace(trajectory, task_version=7), env)


def test_trajectories_are_read_from_both_kinds_of_files(tmp_path, trajectory):
    path = tmp_path / "a.jsonl"
    with TrajectoryWriter(path) as writer:
        writer.append(trajectory)
    assert list(read_trajectories(path, [])) == [trajectory]
    path.write_text(json.dumps({"split": "held_in", "trajectory": to_json(trajectory)}))
    assert list(read_trajectories(path, [trajectory.id])) == [trajectory]
    with pytest.raises(DataError, match="no trajectory x"):
        list(read_trajectories(path, ["x"]))


# The format of trajectory files.


def as_format_1(trajectory):
    """What the version without profiles wrote."""
    new = {"profile", "task_version", "edit", "reward_parts"}
    new |= {"integrity_events", "cache_check"}
    value = to_json(trajectory)
    del value["format"]
    for step in value["steps"]:
        for name in new:
            del step[name]
        if step["action"] is not None:
            del step["action"]["target"]
    return value


def test_files_of_the_first_format_are_migrated(tmp_path, trajectory):
    value = as_format_1(trajectory)
    value["steps"][0]["execution"]["integrity_events"] = ["protected_file:data/x"]
    path = tmp_path / "old.jsonl"
    path.write_text(json.dumps(value) + "\n")
    (found,) = TrajectoryFile(path)
    assert found.format == TRAJECTORY_FORMAT
    first = found.steps[0]
    assert first.integrity_events == ("protected_file:data/x",)
    assert (first.profile, first.task_version, first.edit) == ("direct", 1, None)
    assert found.steps[1].reply == "nonsense"


@pytest.mark.parametrize("version", [0, 3, 99, "2", None, 1.5])
def test_files_of_an_unknown_format_are_refused(trajectory, version):
    value = {**to_json(trajectory), "format": version}
    with pytest.raises(DataError, match=r"a\.jsonl:1: trajectory format"):
        from_json(Trajectory, value, "a.jsonl:1")


@pytest.mark.parametrize(
    "damage", [{"steps": None}, {"steps": [3]}, {"steps": {}}, {"extra": 1}]
)
def test_a_damaged_old_record_is_still_refused(trajectory, damage):
    value = {**as_format_1(trajectory), **damage}
    with pytest.raises(DataError):
        from_json(Trajectory, value, "a.jsonl:1")
