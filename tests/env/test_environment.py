"""One step at a time: outcomes, feedback, snapshots, undo, and whose fault it is."""

import dataclasses
import json
import logging
import random

import pytest

from mlagent_jax.config import EnvConfig
from mlagent_jax.env.advance import advance
from mlagent_jax.env.environment import Environment
from mlagent_jax.env.execution_cache import ExecutionCache, execution_key
from mlagent_jax.env.executor import Executor
from mlagent_jax.env.packs import PackFolder
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.errors import DataError, EnvUnavailableError, TaskError
from mlagent_jax.text.actions import render_action
from mlagent_jax.types import (
    Action,
    ActionKind,
    Limits,
    Outcome,
    StepStatus,
    from_json,
    to_json,
)
from tests.fakes import (
    FakeExecutor,
    make_fake_environment,
    make_graded_task,
    make_submission,
)

CFG = EnvConfig(use_cache=False)


def write(script, path="train.py"):
    return render_action(Action(kind=ActionKind.WRITE, path=path, content=script))


@pytest.fixture(name="task")
def fixture_task(tmp_path):
    return make_graded_task(tmp_path / "task")


@pytest.fixture(name="store")
def fixture_store(tmp_path):
    return SnapshotStore(tmp_path / "store")


@pytest.fixture(name="env")
def fixture_env(task, store):
    return make_fake_environment({"toy": task}, store.root, CFG)


@pytest.fixture(name="start")
def fixture_start(env):
    return env.reset("toy").state


def play(env, state, *replies):
    steps = []
    for reply in replies:
        steps.append(env.step(state, reply))
        state = advance(state, steps[-1])
    return state, steps


def test_a_reset_measures_the_starter(env, task, store):
    start = env.reset("toy")
    assert start.state.score == 0.5
    assert store.get_blob(start.submission) == make_submission(20)
    files = {path: text.encode() for path, text in task.starter.items()}
    assert store.get(start.state.snapshot) == files


def test_a_scored_edit_moves_the_state(env, start, store):
    state, (step,) = play(env, start, "Better.\n" + write("print hi\nright 30\n"))
    assert step.outcome is Outcome.SCORED
    assert step.is_edit
    assert (step.score_before, step.score_after) == (0.5, 0.75)
    assert step.feedback == "Score: 0.75 (was 0.5, higher is better).\nOutput:\nhi"
    assert step.action.thought == "Better."
    assert "-right 20\n+print hi\n+right 30\n" in step.diff
    assert store.get_blob(step.submission) == make_submission(30)
    assert state.snapshot == step.snapshot_after != step.snapshot_before
    assert state.score == 0.75
    assert state.steps == (step,)
    assert state.previous_snapshots == ((start.snapshot, 0.5),)


def test_a_lower_is_better_task_says_so(tmp_path, store):
    task = make_graded_task(tmp_path / "m", metric="mae", direction="min", best=0.0)
    env = make_fake_environment({"toy": task}, store.root, CFG)
    start = env.reset("toy").state
    step = env.step(start, write("right 36\n"))
    assert step.feedback == "Score: 0.1 (was 0.5, lower is better)."


def test_records_survive_json(env, start):
    state, steps = play(env, start, write("right 30\n"), "no action", "<list/>")
    for record in [*steps, state]:
        text = json.dumps(to_json(record))
        assert from_json(type(record), json.loads(text)) == record


@pytest.mark.parametrize(
    ("script", "outcome", "feedback"),
    [
        ("print a\nwarn Boom\nexit 3\n", "script_error", "failed (exit code 3).\nErr"),
        ("timeout\n", "timeout", "ran longer than its limit of 20 seconds."),
        ("memory\n", "out_of_memory", "more than its limit of 2048 MiB of memory."),
        ("limit\n", "resource_limit", "exceeded a limit on output (1024 KiB)"),
        ("print x\n", "invalid_submission", "wrote no submission.csv.\nOutput:\nx"),
        ("broken\n", "invalid_submission", "Invalid submission (wrong_columns)."),
    ],
)
def test_a_failing_edit_keeps_the_files_and_the_score(
    env, start, store, script, outcome, feedback
):
    state, (step,) = play(env, start, write(script))
    assert step.outcome == outcome
    assert feedback in step.feedback
    assert step.is_edit
    assert step.score_after == 0.5
    assert step.submission is None
    assert store.get(state.snapshot)["train.py"] == script.encode()
    undone, (undo,) = play(env, state, "<undo/>")
    assert undone.snapshot == start.snapshot
    assert undo.outcome is Outcome.INFO


def test_a_failed_script_leaves_nothing_else_behind(env, start, store):
    state, _ = play(env, start, write("save model.txt m\nwarn x\nexit 1\n"))
    assert sorted(store.get(state.snapshot)) == ["train.py"]
    state, _ = play(env, state, write("save model.txt m\nright 20\n"))
    assert sorted(store.get(state.snapshot)) == ["model.txt", "train.py"]


def test_undo_takes_back_one_edit_after_the_other(env, start):
    replies = [write("right 30\n"), write("exit 1\n"), "<list/>", write("right 10\n")]
    state, _ = play(env, start, *replies)
    scores, snapshots = [], []
    for _ in range(3):
        state, (step,) = play(env, state, "<undo/>")
        assert step.outcome is Outcome.INFO
        assert not step.is_edit
        scores.append(state.score)
        snapshots.append(state.snapshot)
    assert scores == [0.75, 0.75, 0.5]
    assert snapshots[-1] == start.snapshot
    assert state.previous_snapshots == ()
    state, (step,) = play(env, state, "<undo/>")
    assert (step.outcome, step.reason) == (Outcome.INVALID_ACTION, "nothing_to_undo")
    assert state.snapshot == start.snapshot


def test_looking_changes_nothing(env, start):
    state, steps = play(
        env,
        start,
        "<list/>",
        '<read path="train.py"/>',
        '<read path="data/train.csv"/>',
    )
    assert [step.outcome for step in steps] == [Outcome.INFO] * 3
    assert "data/train.csv (16 bytes, read-only)" in steps[0].feedback
    assert "2| right 20" in steps[1].feedback
    assert "2| 100,1" in steps[2].feedback
    assert all(step.diff == "" and step.execution is None for step in steps)
    assert (state.snapshot, state.score) == (start.snapshot, start.score)


def test_hidden_labels_are_nowhere(env, start):
    for path in ["private/labels.csv", "data/../private/labels.csv", "labels.csv"]:
        step = env.step(start, f'<read path="{path}"/>')
        assert step.outcome is Outcome.INVALID_ACTION


def test_a_run_may_score_but_is_no_edit(env, start):
    state, steps = play(
        env, start, write("right 30\nsave b.py right_40\n"), '<run path="train.py"/>'
    )
    assert steps[1].outcome is Outcome.SCORED
    assert not steps[1].is_edit
    assert len(state.previous_snapshots) == 1


def test_an_edit_of_another_file_runs_the_entry_script(env, start):
    step = env.step(start, write("exit 1\n", path="lib.py"))
    assert step.outcome is Outcome.SCORED
    assert step.is_edit


def test_submitting_ends_the_trajectory(env, start):
    step = env.step(start, "Done.\n<submit/>")
    assert (step.status, step.outcome) == (StepStatus.SUBMITTED, Outcome.INFO)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty_reply"),
        ("x" * 70_000, "reply_too_long"),
        ("<list/>\n<list/>", "several_actions"),
        ('{"Action": "List Files", "Action Input": {', "no_action"),
        ('<write path="../../etc/x">\nx\n</write>', "path_outside"),
        ('<write path="submission.csv">\nx\n</write>', "path_protected"),
        ("\ud800\0<edit", "no_action"),
    ],
)
def test_a_bad_reply_is_feedback(env, start, reply, reason):
    state, (step,) = play(env, start, reply)
    assert (step.outcome, step.reason) == (Outcome.INVALID_ACTION, reason)
    assert step.feedback.startswith(f"Invalid action ({reason}). ")
    assert step.execution is None
    assert len(step.reply) <= CFG.max_reply_chars
    step.reply.encode()
    assert dataclasses.replace(state, steps=()) == start


def test_random_replies_never_crash_a_step(env, start):
    rng = random.Random(0)
    pieces = ["<edit path=", '"train.py"', ">", "\n", "<<<<<<< SEARCH\n", "=======\n"]
    pieces += [">>>>>>> REPLACE\n", "</edit>", "right 20\n", "<lines", ' first="1"']
    for _ in range(500):
        env.step(start, "".join(rng.choices(pieces, k=14)))


def test_feedback_has_no_host_paths_addresses_or_durations(env, start):
    script = (
        'warn   File "/home/me/my runs/w1/train.py", line 3, in <module>\n'
        'warn   File "/opt/v/lib/python3.11/site-packages/sklearn/base.py", line 9\n'
        "warn FileNotFoundError: '/tmp/x/none.csv' at <C object at 0x7f3a9be01a90>\n"
        "warn see https://example.org/a/b and data/train/x.csv 3/4/5\n"
        "exit 1\n"
    )
    assert env.step(start, write(script)).feedback == (
        "train.py failed (exit code 1).\nError:\n"
        'File "train.py", line 3, in <module>\n'
        '  File "sklearn/base.py", line 9\n'
        "FileNotFoundError: 'none.csv' at <C object at 0x...>\n"
        "see https://example.org/a/b and data/train/x.csv 3/4/5"
    )


def test_long_output_keeps_its_tail(env, start):
    script = "".join(f"print line {i}\n" for i in range(900)) + "right 20\n"
    feedback = env.step(start, write(script)).feedback
    assert len(feedback) < 1_700
    assert "\n[...]\nline 7" in feedback
    assert feedback.endswith("line 899")


def test_the_same_reply_gives_the_same_record(task, tmp_path):
    records = []
    for name in "ab":
        env = make_fake_environment({"toy": task}, tmp_path / name, CFG)
        step = env.step(env.reset("toy").state, write("print hi\nright 30\n"))
        records.append(dataclasses.replace(step, env_s=0.0))
    assert records[0] == records[1]


def test_our_faults_are_raised(env, start):
    with pytest.raises(EnvUnavailableError, match="disk is full"):
        env.step(start, write("unavailable\n"))
    with pytest.raises(ZeroDivisionError, match="a fault in the grader"):
        env.step(start, write("bug\n"))


def test_a_starter_without_a_score_is_the_tasks_fault(tmp_path, store):
    for script, error in [("exit 1\n", TaskError), ("timeout\n", EnvUnavailableError)]:
        task = make_graded_task(tmp_path / "t", starter={"train.py": script})
        env = make_fake_environment({"toy": task}, store.root, CFG)
        with pytest.raises(error, match="starter"):
            env.reset("toy")
    with pytest.raises(TaskError, match="known: \\['toy'\\]"):
        env.reset("other")


def test_a_state_of_another_version_cannot_be_continued(env, start):
    with pytest.raises(DataError, match="version 2 cannot be continued"):
        env.step(dataclasses.replace(start, task_version=2), "<list/>")
    with pytest.raises(DataError, match="unknown here"):
        env.step(dataclasses.replace(start, task_id="x"), "<list/>")
    lost = dataclasses.replace(start, snapshot="0" * 64)
    with pytest.raises(DataError, match="cannot be read"):
        env.step(lost, "<list/>")


def test_a_missing_entry_script_is_named(env, store, start):
    state = dataclasses.replace(start, snapshot=store.put({"a.py": b"x\n"}))
    step = env.step(state, write("y\n", path="a.py"))
    assert step.reason == "not_found"
    assert "train.py is missing" in step.feedback
    assert env.step(state, write("right 30\n")).outcome is Outcome.SCORED


# The execution cache.


def cached_env(task, store):
    executor = FakeExecutor()
    cfg = EnvConfig()
    return executor, Environment(
        {"toy": task}, store, executor, cfg, ExecutionCache(store)
    )


def test_the_same_workspace_is_executed_once(task, store):
    executor, env = cached_env(task, store)
    start = env.reset("toy").state
    first = env.step(start, write("save x 1\nprint a\nright 30\n"))
    other_executor, other = cached_env(task, SnapshotStore(store.root))
    second = other.step(start, write("save x 1\nprint a\nright 30\n"))
    assert executor.num_runs == 2
    assert other_executor.num_runs == 0
    assert second.execution.is_cached
    uncached = dataclasses.replace(second.execution, is_cached=False)
    assert first == dataclasses.replace(second, execution=uncached, env_s=first.env_s)


def test_failures_are_cached_but_limits_are_not(task, store):
    executor, env = cached_env(task, store)
    start = env.reset("toy").state
    for script, num_runs in [("exit 1\n", 1), ("print x\n", 1), ("timeout\n", 2)]:
        executor.num_runs = 0
        assert env.step(start, write(script)).outcome == (
            env.step(start, write(script)).outcome
        )
        assert executor.num_runs == num_runs


def test_a_damaged_entry_is_a_miss(task, store, caplog):
    executor, env = cached_env(task, store)
    env.reset("toy")
    (pack,) = (store.root / "executions").iterdir()
    key, entry = (content := pack.read_bytes())[:32], content[36:]
    for damage in [b"", entry[:-5], entry.replace(b"0.5", b"0.6"), b"\xff" + entry]:
        PackFolder(store.root / "executions").put(key, damage)
        executor, env = cached_env(task, SnapshotStore(store.root))
        with caplog.at_level(logging.WARNING):
            env.reset("toy")
        assert executor.num_runs == 1
        env.reset("toy")  # what it wrote is newer than the damaged entry
        assert executor.num_runs == 1
    assert caplog.text.count("damaged entry") == 4


def test_an_entry_whose_files_are_gone_is_a_miss(task, store):
    _, env = cached_env(task, store)
    start = env.reset("toy")
    for path in (store.root / "packs").iterdir():
        path.unlink()
    executor, env = cached_env(task, SnapshotStore(store.root))
    assert env.reset("toy").submission == start.submission
    assert executor.num_runs == 1


def test_the_key_covers_all_inputs(task):
    args = {"task": task, "snapshot": "s", "script": "a", "isolation": "bubblewrap"}
    hashes = {"public/train.csv": "2" * 64}
    keys = {
        execution_key(**{**args, **change})
        for change in [
            {},
            {"snapshot": "t"},
            {"script": "b"},
            {"isolation": "process (not isolated)"},
            {"task": dataclasses.replace(task, version=2)},
            {"task": dataclasses.replace(task, limits=Limits(wall_s=1.0))},
            {"task": dataclasses.replace(task, file_hashes=hashes)},
        ]
    }
    assert len(keys) == 7


# With the real executor.

SCRIPT = """\
import csv
ids = [str(i) for i in range(40)]
assert next(csv.reader(open("data/train.csv"))) == ["id", "target"]
with open("submission.csv", "w") as file:
    writer = csv.writer(file)
    writer.writerow(["id", "target"])
    writer.writerows([[i, int(int(i) < NUM_RIGHT)] for i in ids])
print("done")
"""


def test_real_scripts_are_run_graded_and_explained(tmp_path):
    task = make_graded_task(
        tmp_path / "task",
        starter={"train.py": SCRIPT.replace("NUM_RIGHT", "20")},
        limits=Limits(wall_s=5.0),
    )
    tasks = {"toy": task}
    cfg = EnvConfig(preload=())
    store = SnapshotStore(tmp_path / "store")
    env = Environment(tasks, store, Executor(tasks, cfg), cfg, ExecutionCache(store))
    try:
        start = env.reset("toy").state
        assert start.score == 0.5
        search = render_action(
            Action(
                kind=ActionKind.EDIT,
                path="train.py",
                blocks=(("print('no such line')\n", ""),),
            )
        )
        good = write(SCRIPT.replace("NUM_RIGHT", "30"))
        bad = write("import os\nprint('x')\nraise ValueError('no way')\n")
        endless = write("while True:\n    pass\n")
        state, steps = play(env, start, search, good, bad, "<undo/>", "<submit/>")
        assert [step.outcome for step in steps] == [
            Outcome.INVALID_ACTION,
            Outcome.SCORED,
            Outcome.SCRIPT_ERROR,
            Outcome.INFO,
            Outcome.INFO,
        ]
        assert steps[1].feedback.endswith("higher is better).\nOutput:\ndone")
        assert 'File "train.py", line 3' in steps[2].feedback
        assert steps[2].feedback.endswith("ValueError: no way")
        assert state.score == 0.75
        assert env.step(start, good).execution.is_cached
        short = dataclasses.replace(task, limits=Limits(wall_s=0.5))
        with_limit = Environment(
            {"toy": short}, store, Executor({"toy": short}, cfg), cfg
        )
        try:
            assert with_limit.step(start, endless).outcome is Outcome.TIMEOUT
        finally:
            with_limit.close()
    finally:
        env.close()
