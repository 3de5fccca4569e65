"""Every prefix of every trajectory is a state; drawing is fair and repeatable."""

from collections import Counter

import pytest

from mlagent_jax.data.state_pool import StatePool
from mlagent_jax.data.task_hashes import record_task_hashes
from mlagent_jax.data.trajectories import TrajectoryFile, TrajectoryWriter
from mlagent_jax.errors import DataError
from mlagent_jax.types import Action, ActionKind, Outcome
from tests.samples import make_edit, make_step, make_task, make_trajectory

EDIT = make_edit("a\n", "b\n")
STEPS = (
    make_step(EDIT, 0.5, 0.4, snapshots=("s0", "s1")),
    make_step(
        Action(kind=ActionKind.UNDO), 0.4, 0.5, Outcome.INFO, snapshots=("s1", "s0")
    ),
    make_step(EDIT, 0.5, 0.7, snapshots=("s0", "s2")),
)
TASKS = {"toy": make_task(), "other": make_task(id="other")}


def write(path, trajectories):
    with TrajectoryWriter(path) as writer:
        for trajectory in trajectories:
            writer.append(trajectory)
    return TrajectoryFile(path)


def make_many(tmp_path, counts, name="x.jsonl"):
    trajectories = [
        make_trajectory(f"{task_id}/{i}", STEPS, task_id=task_id)
        for task_id, count in counts.items()
        for i in range(count)
    ]
    return write(tmp_path / name, trajectories)


def test_every_prefix_is_a_state(tmp_path):
    file = write(tmp_path / "x.jsonl", [make_trajectory("t", STEPS)])
    pool = StatePool([file], TASKS)
    states = [pool.get(i).state for i in range(len(pool))]
    assert [state.steps for state in states] == [STEPS[:t] for t in range(3)]
    assert [state.snapshot for state in states] == ["s0", "s1", "s0"]
    assert [state.score for state in states] == [0.5, 0.4, 0.5]
    assert states[1].previous_snapshots == (("s0", 0.5),)
    assert states[2].previous_snapshots == ()
    assert [pool.get(i).id for i in range(3)] == ["t@0", "t@1", "t@2"]
    assert pool.get(0).task is TASKS["toy"]


def test_the_order_of_lines_changes_nothing(tmp_path):
    trajectories = [make_trajectory(f"t{i}", STEPS) for i in range(5)]
    pools = [
        StatePool([write(tmp_path / "1.jsonl", trajectories)], TASKS),
        StatePool([write(tmp_path / "2.jsonl", trajectories[::-1])], TASKS),
    ]
    first, second = (pool.sample(seed=3, n=9) for pool in pools)
    assert first == second


def test_draws_follow_the_seed(tmp_path):
    pool = StatePool([make_many(tmp_path, {"toy": 9, "other": 9})], TASKS)
    ids = [[s.id for s in pool.sample(seed, 8)] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_draws_are_balanced_over_tasks_and_without_repetition(tmp_path):
    pool = StatePool([make_many(tmp_path, {"toy": 10, "other": 3})], TASKS)
    drawn = pool.sample(seed=0, n=16)
    assert Counter(state.task.id for state in drawn) == {"toy": 8, "other": 8}
    assert len({state.id for state in drawn}) == 16


def test_a_small_task_is_used_up_before_anything_repeats(tmp_path):
    pool = StatePool([make_many(tmp_path, {"toy": 4, "other": 1})], TASKS)
    drawn = Counter(state.id for state in pool.sample(seed=0, n=15))
    assert set(drawn.values()) == {1}
    drawn = Counter(state.id for state in pool.sample(seed=0, n=20))
    assert set(drawn.values()) == {1, 2}


def test_several_files_make_one_pool(tmp_path):
    files = [
        make_many(tmp_path, {"toy": 2}, "1.jsonl"),
        make_many(tmp_path, {"other": 1}, "2.jsonl"),
    ]
    assert len(StatePool(files, TASKS)) == 9
    again = make_many(tmp_path, {"other": 1}, "3.jsonl")
    with pytest.raises(DataError, match=r"'other/0' is in .*2.jsonl and in .*3.jsonl"):
        StatePool([*files, again], TASKS)


def test_another_version_of_a_task_is_refused(tmp_path):
    file = make_many(tmp_path, {"toy": 1})
    with pytest.raises(DataError, match="recorded on version 1 .* version 2 now"):
        StatePool([file], {"toy": make_task(version=2)})


def test_an_unknown_task_is_refused(tmp_path):
    file = make_many(tmp_path, {"toy": 1})
    with pytest.raises(DataError, match="of task 'toy', which this run does not have"):
        StatePool([file], {"other": TASKS["other"]})


def test_no_state_at_all_is_refused(tmp_path):
    file = write(tmp_path / "x.jsonl", [make_trajectory("t", ())])
    with pytest.raises(DataError, match="no state in"):
        StatePool([file], TASKS)


def test_a_task_that_changed_since_is_refused_by_its_hash(tmp_path):
    file = make_many(tmp_path, {"toy": 1})
    record_task_hashes(tmp_path, TASKS)
    StatePool([file], TASKS)
    moved = make_task(public_dir=tmp_path)
    StatePool([file], {"toy": moved})  # where it lies does not matter
    for change in ({"file_hashes": {"public/a": "1"}}, {"starter": {"train.py": ""}}):
        changed = {"toy": make_task(**change)}
        with pytest.raises(DataError, match=r"tasks \['toy'\] have changed since"):
            StatePool([file], changed)
        with pytest.raises(DataError, match="have changed since"):
            record_task_hashes(tmp_path, changed)


def test_starts_are_the_states_before_a_first_step(tmp_path):
    pool = StatePool([make_many(tmp_path, {"toy": 2, "other": 1})], TASKS)
    starts = pool.sample_starts(seed=0, n=5)
    assert all(start.id.endswith("@0") for start in starts)
    assert [s.id for s in pool.sample_starts(0, 5)] == [s.id for s in starts]
    assert Counter(s.task.id for s in starts)["other"] >= 1
