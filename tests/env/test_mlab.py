"""Profile `mlab` in the environment: the editor, its cache, undo by file, looks."""

import dataclasses
import json

import pytest

from mlagent_jax.config import EnvConfig
from mlagent_jax.env.advance import advance
from mlagent_jax.env.editor import EditingPool, hash_prompt
from mlagent_jax.env.pool_jobs import JobResult
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.errors import ConfigError
from mlagent_jax.policy.base import Reply
from mlagent_jax.policy.literal import LiteralEditor
from mlagent_jax.text.editor import editor_prompt
from mlagent_jax.text.mlab_actions import render_action
from mlagent_jax.text.written_edits import write_instruction
from mlagent_jax.types import Action, ActionKind, EditorCall, Outcome, StepStatus
from tests.fakes import FakePolicy, make_fake_environment, make_graded_task

CFG = EnvConfig(use_cache=False, profile="mlab")


def ask(search, replace, path="train.py", target="train.py"):
    content = write_instruction(((search, replace),))
    return render_action(
        Action(kind=ActionKind.ASK_EDIT, path=path, target=target, content=content)
    )


def do(kind, **fields):
    return render_action(Action(kind=kind, **fields))


class InlinePool:
    """Carries steps out at the next poll, in this process."""

    def __init__(self, environment):
        self.environment = environment
        self.waiting = []

    def submit(self, job_id, state, reply, edit=None):
        self.waiting.append((job_id, state, reply, edit))

    def submit_reset(self, job_id, task_id):
        raise NotImplementedError

    def poll(self, timeout_s):
        waiting, self.waiting = self.waiting, []
        return [
            JobResult(
                job_id=job_id,
                value=self.environment.step(state, reply, edit),
                error="",
                seconds=0.0,
            )
            for job_id, state, reply, edit in waiting
        ]

    def num_pending(self):
        return len(self.waiting)


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


def editing_pool(env, store, editor=None):
    return EditingPool(InlinePool(env), editor or LiteralEditor(), store, CFG)


def play(pool, state, *replies):
    steps = []
    for i, reply in enumerate(replies):
        pool.submit(f"job{i}", state, reply)
        (result,) = pool.poll(10.0)
        assert result.job_id == f"job{i}"
        steps.append(result.value)
        state = advance(state, steps[-1])
    assert pool.num_pending() == 0
    return state, steps


def test_an_edit_in_words_is_made_run_scored_and_recorded(env, store, start):
    pool = editing_pool(env, store)
    state, (step,) = play(pool, start, ask("right 20\n", "right 30\n"))
    assert step.outcome is Outcome.SCORED
    assert step.is_edit
    assert (step.profile, step.score_after) == ("mlab", 0.75)
    assert step.feedback.startswith("The edited file is saved as train.py. The change:")
    assert "-right 20\n+right 30\n" in step.feedback
    assert "Score: 0.75 (was 0.5, higher is better)." in step.feedback
    assert store.get(state.snapshot)["train.py"] == b"print start\nright 30\n"
    call = step.edit
    assert (call.model, call.seed, call.is_cached) == ("literal", 0, False)
    prompt = editor_prompt("train.py", "print start\nright 20\n", step.action.content)
    assert call.prompt_hash == hash_prompt(prompt)
    assert "right 30" in call.reply


def test_the_same_question_is_asked_once(env, store, start):
    editor = FakePolicy(lambda request: "```python\nright 10\n```")
    pool = editing_pool(env, store, editor)
    _, (first,) = play(pool, start, ask("right 20\n", "x\n"))
    _, (second,) = play(editing_pool(env, store, editor), start, first.reply)
    assert len(editor.requests) == 1
    assert editor.requests[0].seed == CFG.editor_seed
    assert second.edit == dataclasses.replace(first.edit, is_cached=True)
    (path,) = (store.root / "edits").rglob("*.json")
    path.write_text("damaged")
    play(editing_pool(env, store, editor), start, first.reply)
    assert len(editor.requests) == 2
    assert json.loads(path.read_text())["reply"] == first.edit.reply


@pytest.mark.parametrize(
    "answer",
    [
        "I cannot.",
        "```python\nright 30\n",
        "```\nright 30\n```",
        "",
        "`````python\nx\n```",
    ],
)
def test_an_editor_without_a_whole_file_changes_nothing(env, store, start, answer):
    pool = editing_pool(env, store, FakePolicy(lambda request: answer))
    state, (step,) = play(pool, start, ask("right 20\n", "x\n"))
    assert (step.outcome, step.reason) == (
        Outcome.INVALID_ACTION,
        "editor_gave_no_file",
    )
    assert state.snapshot == start.snapshot
    assert step.edit.reply == answer


def test_a_broken_editor_is_our_fault(env, store, start):
    def fail(request):
        return Reply(request_id=request.id, text="", finish="error", error="503")

    pool = editing_pool(env, store, FakePolicy(fail))
    pool.submit("a", start, ask("right 20\n", "x\n"))
    (result,) = pool.poll(10.0)
    assert (result.value, result.error) == (None, "the editor failed: 503")


def test_an_edit_without_an_editor_is_a_fault_of_the_set_up(env, start):
    with pytest.raises(ConfigError, match="EditingPool"):
        env.step(start, ask("right 20\n", "x\n"))


@pytest.mark.parametrize(
    "target", ["../x", "/etc/x", "data/x", "submission.csv", "a\0b", "", "train.py/x"]
)
def test_the_editor_cannot_write_outside(env, store, start, target):
    editor = FakePolicy(lambda request: "```python\nright 30\n```")
    state, (step,) = play(
        editing_pool(env, store, editor), start, ask("a\n", "b\n", target=target)
    )
    assert step.outcome is Outcome.INVALID_ACTION
    assert step.reason in {"path_outside", "path_protected"}
    assert state.snapshot == start.snapshot


def test_undo_follows_the_file_that_was_written(env, store, start):
    pool = editing_pool(env, store)
    state, steps = play(
        pool,
        start,
        ask("right 20\n", "right 30\n", target="other.py"),
        ask("right 20\n", "right 10\n"),
        do(ActionKind.UNDO, path="other.py"),
        do(ActionKind.UNDO, path="other.py"),
        do(ActionKind.UNDO, path="train.py"),
        do(ActionKind.UNDO, path="train.py"),
    )
    outcomes = [step.outcome for step in steps]
    assert outcomes == [
        Outcome.INFO,
        Outcome.SCORED,
        Outcome.INFO,
        Outcome.INVALID_ACTION,
        Outcome.INFO,
        Outcome.INVALID_ACTION,
    ]
    assert [step.reason for step in steps if step.reason] == ["nothing_to_undo"] * 2
    assert "did not exist before" in steps[2].feedback
    assert steps[4].feedback.endswith("The file is now:\nprint start\nright 20\n")
    assert store.get(state.snapshot) == store.get(start.snapshot)


def test_undo_of_the_newest_change_restores_its_score(env, store, start):
    pool = editing_pool(env, store)
    state, steps = play(
        pool,
        start,
        ask("right 20\n", "right 30\nsave out.txt x\n"),
        do(ActionKind.UNDO, path="train.py"),
    )
    assert steps[0].score_after == 0.75
    assert (state.snapshot, state.score) == (start.snapshot, start.score)


def test_looking_and_copying(env, store, start):
    pool = editing_pool(env, store)
    lines = "".join(f"print {i}\n" for i in range(150))
    state, steps = play(
        pool,
        start,
        do(ActionKind.LIST, path="."),
        do(ActionKind.LIST, path="data"),
        do(ActionKind.LIST, path="nowhere"),
        do(ActionKind.LIST, path=".."),
        do(ActionKind.COPY, path="data/train.csv", target="lib/t.csv"),
        do(ActionKind.LIST, path="./"),
        do(ActionKind.UNDERSTAND, path="lib/t.csv", content="columns"),
        do(ActionKind.INSPECT, path="train.py", first_line=2, last_line=90),
        do(ActionKind.INSPECT, path="train.py", first_line=1, last_line=101),
        do(ActionKind.RUN, path="missing.py"),
        ask("right 20\n", f"right 20\n{lines}"),
        do(ActionKind.UNDERSTAND, path="data/train.csv", content=""),
        do(ActionKind.SUBMIT, content="All done."),
    )
    texts = [step.feedback for step in steps]
    assert texts[0] == "data/\ntrain.py"
    assert texts[1] == "train.csv"
    assert [steps[i].reason for i in (2, 3, 8, 9)] == [
        "not_found",
        "path_outside",
        "bad_line_range",
        "not_found",
    ]
    assert "List Files shows all" in texts[9]
    assert texts[5] == "data/\nlib/\ntrain.py"
    assert texts[6] == "id,target\n100,1\n"
    assert texts[7] == "train.py, lines 2 to 2 of 2:\nright 20"
    assert steps[12].status is StepStatus.SUBMITTED
    assert steps[12].action.content == "All done."
    assert "lib/t.csv" in store.get(state.snapshot)


def test_a_copy_onto_the_entry_script_is_run(env, store, start):
    pool = editing_pool(env, store)
    _, steps = play(
        pool,
        start,
        ask("right 20\n", "right 40\n", target="b.py"),
        do(ActionKind.COPY, path="b.py", target="train.py"),
    )
    assert not steps[0].is_edit
    assert steps[1].is_edit
    assert steps[1].score_after == 1.0


def test_direct_replies_are_no_actions_here(env, start):
    assert env.step(start, "<list/>").reason == "no_action"


def test_a_recorded_call_is_enough_to_repeat_a_step(env, store, start):
    pool = editing_pool(env, store)
    _, (step,) = play(pool, start, ask("right 20\n", "right 30\n"))
    again = env.step(start, step.reply, step.edit)
    assert dataclasses.replace(again, env_s=step.env_s) == step
    other = EditorCall(**{**vars(step.edit), "reply": "```python\nright 40\n```"})
    assert env.step(start, step.reply, other).score_after == 1.0
