"""Which submission counts, and how records survive an interrupted run."""

import dataclasses

import pandas as pd
import pytest

from mlagent_jax.data.jsonl import heal
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.errors import DataError
from mlagent_jax.evaluation.records import (
    EvalRecord,
    append_record,
    current_steps,
    read_records,
    score_trajectory,
)
from tests.samples import make_edit, make_step, make_task, make_trajectory

LABELS = pd.DataFrame(
    {
        "id": range(8),
        "target": [0, 1, 0, 1, 0, 1, 0, 1],
        "part": ["selection"] * 4 + ["test"] * 4,
    }
)


@pytest.fixture
def world(tmp_path):
    """A task with hidden labels and a store."""
    (tmp_path / "private").mkdir()
    LABELS.to_csv(tmp_path / "private" / "labels.csv", index=False)
    task = make_task(private_dir=tmp_path / "private", classes=("0", "1"))
    return task, SnapshotStore(tmp_path / "store")


def submit(store, num_right_on_test):
    """Right on every selection row, on `num_right_on_test` of four test rows."""
    values = LABELS["target"].to_numpy().copy()
    values[4 + num_right_on_test :] = 1 - values[4 + num_right_on_test :]
    frame = pd.DataFrame({"id": range(8), "target": values})
    return store.put_blob(frame.to_csv(index=False).encode())


def scored(store, before, after, num_right, snapshots):
    step = make_step(make_edit("a\n", "b\n"), before, after, snapshots=snapshots)
    return dataclasses.replace(step, submission=submit(store, num_right))


def undo(before, after, snapshots):
    step = make_step("<undo/>", before, snapshots=snapshots)
    from mlagent_jax.text.actions import parse_reply

    action = parse_reply("<undo/>", max_chars=100)
    return dataclasses.replace(step, action=action, score_after=after)


def test_the_last_valid_submission_counts_and_the_best_on_selection_is_kept(world):
    task, store = world
    steps = (
        scored(store, 0.5, 0.9, 4, ("s0", "s1")),
        scored(store, 0.9, 0.6, 1, ("s1", "s2")),
    )
    trajectory = make_trajectory(steps=steps, start_submission=submit(store, 2))
    record = score_trajectory(trajectory, task, store, (0.5, 0.5))
    assert record.start_score == 0.5
    assert record.final_score == 0.25
    assert record.relative_gain_percent == pytest.approx(-50.0)
    assert record.selected_score == 1.0
    assert record.selected_gain_percent == pytest.approx(100.0)


def test_an_undone_step_does_not_count(world):
    task, store = world
    steps = (
        scored(store, 0.5, 0.9, 3, ("s0", "s1")),
        scored(store, 0.9, 0.6, 1, ("s1", "s2")),
        undo(0.6, 0.9, ("s2", "s1")),
    )
    trajectory = make_trajectory(steps=steps, start_submission=submit(store, 2))
    assert current_steps(trajectory) == [steps[0]]
    assert score_trajectory(trajectory, task, store, ()).final_score == 0.75


def test_everything_undone_leaves_the_starter_and_no_gain(world):
    task, store = world
    steps = (
        scored(store, 0.5, 0.6, 0, ("s0", "s1")),
        undo(0.6, 0.5, ("s1", "s0")),
    )
    trajectory = make_trajectory(steps=steps, start_submission=submit(store, 2))
    assert score_trajectory(trajectory, task, store, ()).relative_gain_percent == 0.0


def test_a_starter_without_a_submission_is_refused(world):
    task, store = world
    with pytest.raises(DataError, match="left no submission"):
        score_trajectory(make_trajectory(), task, store, ())


def test_records_survive_an_interrupted_write(world, tmp_path):
    task, store = world
    trajectory = make_trajectory(start_submission=submit(store, 2))
    record = score_trajectory(trajectory, task, store, ())
    path = tmp_path / "eval" / "ppo.jsonl"
    append_record(path, record)
    with path.open("a") as file:
        file.write('{"trajectory": {"id": "half')
    heal(path)
    append_record(path, record)
    assert read_records(path, EvalRecord) == [record, record]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("{}\nnot json\n")
    with pytest.raises(DataError, match=r"x\.jsonl:1: not a EvalRecord"):
        read_records(path, EvalRecord)
    path.write_text("not json\n")
    with pytest.raises(DataError, match=r"x\.jsonl:1: not JSON"):
        read_records(path, EvalRecord)
