"""Collecting is repeatable, resumable and leaves nothing out."""

import dataclasses
import itertools
import json
import sys
import zlib

import pytest

from mlagent_jax.config import (
    CollectConfig,
    EnvConfig,
    KeepConfig,
    PromptConfig,
    RunConfig,
)
from mlagent_jax.data.trajectories import TrajectoryFile
from mlagent_jax.env.advance import advance
from mlagent_jax.env.environment import Start
from mlagent_jax.env.pool_jobs import JobResult
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.workspace import apply_action
from mlagent_jax.errors import DataError, EnvUnavailableError, PolicyError
from mlagent_jax.explore.collect import collect
from mlagent_jax.explore.ideas import load_moves
from mlagent_jax.policy.scripted import ScriptedPolicy
from mlagent_jax.text.actions import parse_reply
from mlagent_jax.types import ActionKind, Outcome, State, StepRecord, StepStatus
from tests.explore.test_ideas import MANY
from tests.samples import SCRIPT, make_task

TASK_IDS = ("first", "second")


class FakePool:
    """Scores a script by its checksum; the newest job is done first."""

    def __init__(self, store, *, newest_first=False, num_failing=0):
        self.store = store
        self.newest_first = newest_first
        self.num_failing = num_failing
        self.num_steps = 0
        self.waiting = []

    def submit(self, job_id, state, reply):
        self.waiting.append((job_id, lambda: self.step(state, reply)))

    def submit_reset(self, job_id, task_id):
        self.waiting.append((job_id, lambda: self.reset(task_id)))

    def num_pending(self):
        return len(self.waiting)

    def poll(self, timeout_s):
        if not self.waiting:
            return []
        job_id, work = self.waiting.pop(-1 if self.newest_first else 0)
        if self.num_failing and job_id.startswith("step/"):
            self.num_failing -= 1
            return [JobResult(job_id=job_id, value=None, error="died", seconds=0.0)]
        return [JobResult(job_id=job_id, value=work(), error="", seconds=0.0)]

    def reset(self, task_id):
        snapshot = self.store.put({"train.py": SCRIPT.encode()})
        state = State(task_id=task_id, task_version=1, snapshot=snapshot, score=0.5)
        return Start(state=state, submission=None)

    def step(self, state, reply):
        self.num_steps += 1
        action = parse_reply(reply, max_chars=10_000)
        snapshot, score = state.snapshot, state.score
        is_edit = action.kind is ActionKind.EDIT
        if is_edit:
            files = apply_action(self.store.get(state.snapshot), action).files
            snapshot = self.store.put(files)
            score = zlib.crc32(files["train.py"]) % 1000 / 1000
        elif action.kind is ActionKind.UNDO:
            snapshot, score = state.previous_snapshots[-1]
        is_submit = action.kind is ActionKind.SUBMIT
        record = StepRecord(
            reply=reply,
            action=action,
            reason="",
            outcome=Outcome.SCORED if is_edit else Outcome.INFO,
            status=StepStatus.SUBMITTED if is_submit else StepStatus.ONGOING,
            feedback="",
            diff="",
            snapshot_before=state.snapshot,
            snapshot_after=snapshot,
            score_before=state.score,
            score_after=score,
            is_edit=is_edit,
            execution=None,
            submission=None,
            isolation="bubblewrap",
            env_s=0.0,
        )
        assert advance(state, record).snapshot == snapshot
        return record


@pytest.fixture
def config(tmp_path):
    for task_id in TASK_IDS:
        folder = tmp_path / "tasks" / task_id
        folder.mkdir(parents=True)
        (folder / "train.py").write_text(SCRIPT)
        (folder / "moves.toml").write_text(MANY)
    return RunConfig(
        name="test",
        init="some/folder",
        task_root=str(tmp_path / "tasks"),
        held_in=TASK_IDS,
        prompt=PromptConfig(style="brief", history_steps=0, log_steps=6),
        env=EnvConfig(max_steps=6),
        collect=CollectConfig(
            trajectories_per_task=4, fresh_per_task=2, num_in_flight=5
        ),
    )


def run(config, folder, stop_reason=lambda: "", **pool_settings):
    store = SnapshotStore(folder)
    pool = FakePool(store, **pool_settings)
    done = []
    moves = load_moves(config.task_root, config.held_in)
    try:
        collect(
            config,
            folder,
            policy=ScriptedPolicy(moves),
            pool=pool,
            tasks={task_id: make_task(id=task_id) for task_id in TASK_IDS},
            store=store,
            on_done=lambda: done.append(1),
            stop_reason=stop_reason,
        )
    finally:
        pool.num_done = len(done)
    return pool


def contents(folder):
    """Everything about the trajectories but the time they took."""
    return {
        name: [
            (t.id, t.seed, t.ideas, t.steps, t.status)
            for t in TrajectoryFile(folder / name)
        ]
        for name in ("expert.jsonl", "fresh.jsonl")
    }


def test_every_trajectory_is_recorded_once_in_its_file(config, tmp_path):
    pool = run(config, tmp_path / "run")
    found = contents(tmp_path / "run")
    assert [t[0] for t in found["expert.jsonl"]] == [
        f"{task_id}/expert/{i:04d}" for task_id in TASK_IDS for i in range(4)
    ]
    assert [t[0] for t in found["fresh.jsonl"]] == [
        f"{task_id}/fresh/{i:04d}" for task_id in TASK_IDS for i in range(2)
    ]
    assert pool.num_done == 12


def test_trajectories_hold_one_to_three_selected_ideas(config, tmp_path):
    run(config, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "ideas.json").read_text())
    for name, trajectories in contents(tmp_path / "run").items():
        del name
        for trajectory_id, _, ideas, _, _ in trajectories:
            task_id = trajectory_id.partition("/")[0]
            assert 1 <= len(ideas) <= 3
            assert set(ideas) <= set(record[task_id]["selected"])


def test_the_idea_record_has_pool_selection_and_diversity(config, tmp_path):
    run(config, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "ideas.json").read_text())["first"]
    assert len(set(record["pool"])) == 120
    assert len(set(record["selected"])) == 10
    diversity = record["diversity"]
    assert diversity["mean_distance"] > diversity["random_mean_distance"]


def test_the_order_in_which_things_finish_changes_no_content(config, tmp_path):
    run(config, tmp_path / "1")
    run(config, tmp_path / "2", newest_first=True)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_an_interrupted_collection_ends_like_one_that_was_not(config, tmp_path):
    run(config, tmp_path / "1")
    pool = run(config, tmp_path / "2")
    path = tmp_path / "2" / "expert.jsonl"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    resumed = run(config, tmp_path / "2")
    assert 0 < resumed.num_steps < pool.num_steps
    assert resumed.num_done == 12
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert run(config, tmp_path / "2").num_steps == 0


def test_dropped_trajectories_are_counted_and_made_up_for(config, tmp_path):
    with pytest.raises(EnvUnavailableError, match="2 of 12 trajectories could not"):
        run(config, tmp_path / "2", num_failing=2)
    assert sum(map(len, contents(tmp_path / "2").values())) == 10
    run(config, tmp_path / "1")
    run(config, tmp_path / "2")
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_other_ideas_are_refused_before_any_work(config, tmp_path):
    run(config, tmp_path / "run")
    path = tmp_path / "tasks" / "first" / "moves.toml"
    path.write_text(MANY.replace("fit ants", "fit apes"))
    with pytest.raises(DataError, match="holds other ideas"):
        run(config, tmp_path / "run")


def test_training_and_fresh_trajectories_differ(config, tmp_path):
    run(config, tmp_path / "run")
    found = contents(tmp_path / "run")
    seeds = [{t[1] for t in trajectories} for trajectories in found.values()]
    assert not seeds[0] & seeds[1]


def test_a_reason_to_stop_lets_what_is_under_way_end_and_the_rest_is_made_up_for(
    config, tmp_path
):
    asked = []

    def stop_reason():
        asked.append(1)
        return "the budget is used up" if len(asked) > 6 else ""

    with pytest.raises(PolicyError, match="6 of 12 .* recorded: the budget is used up"):
        run(config, tmp_path / "2", stop_reason=stop_reason)
    assert sum(map(len, contents(tmp_path / "2").values())) == 6
    run(config, tmp_path / "1")
    run(config, tmp_path / "2")
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_rejected_trajectories_are_kept_apart_and_not_run_again(config, tmp_path):
    keep = KeepConfig(only_improving=True, unique=True)
    collect_cfg = dataclasses.replace(config.collect, keep=keep)
    config = dataclasses.replace(config, collect=collect_cfg)
    run(config, tmp_path / "run")
    kept = list(TrajectoryFile(tmp_path / "run" / "expert.jsonl"))
    rejected = list(TrajectoryFile(tmp_path / "run" / "rejected.jsonl"))
    assert len(kept) + len(rejected) == 8
    assert rejected
    assert all(t.steps[-1].score_after > t.start_score for t in kept)
    assert run(config, tmp_path / "run").num_steps == 0


@pytest.mark.parametrize(
    "num_trajectories", [100, pytest.param(5_000, marks=pytest.mark.slow)]
)
def test_memory_does_not_grow_with_the_number_of_trajectories(
    config, tmp_path, num_trajectories
):
    """Twice 5,000 trajectories of up to 15 steps: the paper's 10,000.

    Memory blocks are counted, which costs nothing: tracing every allocation took
    most of the time.
    """
    collect_cfg = dataclasses.replace(
        config.collect, trajectories_per_task=num_trajectories, fresh_per_task=0
    )
    config = dataclasses.replace(
        config, collect=collect_cfg, env=EnvConfig(max_steps=15)
    )
    blocks = []
    store = SnapshotStore(tmp_path / "run")
    collect(
        config,
        tmp_path / "run",
        policy=ScriptedPolicy(load_moves(config.task_root, config.held_in)),
        pool=FakePool(store),
        tasks={task_id: make_task(id=task_id) for task_id in TASK_IDS},
        store=store,
        on_done=lambda: blocks.append(sys.getallocatedblocks()),
    )
    assert len(blocks) == 2 * num_trajectories
    recorded = TrajectoryFile(tmp_path / "run" / "expert.jsonl")
    trajectories = itertools.islice(recorded, 1, 101)
    first = next(trajectories)
    before = sys.getallocatedblocks()
    kept = list(trajectories)
    num_blocks = (sys.getallocatedblocks() - before) / len(kept)
    assert first not in kept
    middle = len(blocks) // 2
    grown = max(blocks[-20:]) - max(blocks[middle : middle + 20])
    # An id in a set is one block; a trajectory that is kept would be hundreds.
    assert num_blocks > 50
    assert grown / (num_trajectories - 20) < num_blocks / 4
