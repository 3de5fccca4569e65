"""Mistakes put into trajectories: what the environment would say, never a target."""

import dataclasses

import pytest

from mlagent_jax.config import EnvConfig, PromptConfig
from mlagent_jax.data.examples import training_chats
from mlagent_jax.data.mistakes import add_mistakes
from mlagent_jax.data.state_pool import state_before
from mlagent_jax.env.advance import advance
from mlagent_jax.env.environment import Environment
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.types import Action, ActionKind, Outcome
from tests.samples import SCRIPT, make_edit, make_step, make_task, make_trajectory

RIDGE, LASSO = "model = linear_model.Ridge()\n", "model = linear_model.Lasso()\n"
UNDO = Action(kind=ActionKind.UNDO)
BRIEF = PromptConfig(style="brief", history_steps=0, log_steps=8)
WHOLE = PromptConfig(style="brief", history_steps=None)


class NeverRuns:
    """Stands where scripts would be executed; a mistake must execute nothing."""

    isolation = "bubblewrap"

    def run(self, *_: object) -> None:
        pytest.fail("a mistake executed a script")

    def close(self) -> None: ...


@pytest.fixture
def recorded(tmp_path):
    """An expert's edit, its undo, another edit, the end: (trajectory, task, store)."""
    store = SnapshotStore(tmp_path)
    start = store.put({"train.py": SCRIPT.encode()})
    lasso = store.put({"train.py": SCRIPT.replace(RIDGE, LASSO).encode()})
    edit = make_edit(RIDGE, LASSO, thought="Use a lasso.")
    steps = (
        make_step(edit, 0.5, 0.4, snapshots=(start, lasso)),
        dataclasses.replace(
            make_step(UNDO, 0.4, snapshots=(lasso, start)), score_after=0.5
        ),
        make_step(edit, 0.5, 0.4, snapshots=(start, lasso)),
        make_step(Action(kind=ActionKind.SUBMIT), 0.4, snapshots=(lasso, lasso)),
    )
    trajectory = make_trajectory(steps=steps, start_snapshot=start)
    return trajectory, make_task(), store


def mistakes_of(trajectory):
    return [s for s in trajectory.steps if s.outcome is Outcome.INVALID_ACTION]


def test_without_a_fraction_nothing_changes(recorded):
    trajectory, task, store = recorded
    assert add_mistakes(trajectory, task, store, 0.0, seed=0) is trajectory


@pytest.mark.parametrize("seed", range(8))
def test_the_expert_s_own_steps_stay_as_they_were(recorded, seed):
    trajectory, task, store = recorded
    revised = add_mistakes(trajectory, task, store, 0.6, seed)
    own = [s for s in revised.steps if s.outcome is not Outcome.INVALID_ACTION]
    assert tuple(own) == trajectory.steps
    assert add_mistakes(trajectory, task, store, 0.6, seed) == revised


def test_each_mistake_is_what_the_environment_records_of_the_same_reply(recorded):
    trajectory, task, store = recorded
    env = Environment({task.id: task}, store, NeverRuns(), EnvConfig())
    reasons = set()
    for seed in range(20):
        revised = add_mistakes(trajectory, task, store, 0.6, seed)
        for n, step in enumerate(revised.steps):
            if step.outcome is not Outcome.INVALID_ACTION:
                continue
            record = env.step(state_before(revised, n), step.reply)
            changes = {"env_s": 0.0, "reward_parts": {}, "task_version": 0}
            assert dataclasses.replace(record, **changes) == step
            reasons.add(step.reason)
    assert reasons == {"nothing_to_undo", "search_not_found", "no_change"}


def test_an_undo_is_a_mistake_only_where_nothing_can_be_undone(recorded):
    trajectory, task, store = recorded
    for seed in range(20):
        revised = add_mistakes(trajectory, task, store, 0.6, seed)
        state = state_before(revised, 0)
        for step in revised.steps:
            if step.reason == "nothing_to_undo":
                assert not state.previous_snapshots
            state = advance(state, step)


@pytest.mark.parametrize("cfg", [BRIEF, WHOLE])
def test_a_mistake_is_seen_in_the_prompt_and_never_learnt(recorded, cfg):
    trajectory, task, store = recorded
    revised = next(
        r
        for r in (add_mistakes(trajectory, task, store, 0.6, s) for s in range(20))
        if len(mistakes_of(r)) >= 2
    )
    chats = list(training_chats(revised, task, store, cfg))
    learnt = [
        message.content
        for chat in chats
        for message, is_target in zip(
            [m for m in chat.messages if m.role == "assistant"],
            chat.targets,
            strict=True,
        )
        if is_target
    ]
    assert learnt == [step.reply for step in trajectory.steps]
    shown = "\n".join(m.content for m in chats[-1].messages)
    assert shown.count("invalid") >= 2


def test_about_the_asked_part_of_the_steps_is_preceded_by_one(recorded):
    trajectory, task, store = recorded
    num = [
        len(mistakes_of(add_mistakes(trajectory, task, store, 0.25, seed)))
        for seed in range(400)
    ]
    # Before each of 4 steps 1/4 + 1/16 + ... = 1/3 on average; sd of the mean 0.03.
    assert sum(num) / len(num) == pytest.approx(4 / 3, abs=0.15)
