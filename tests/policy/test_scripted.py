"""The expert's choices follow from the prompt and the seed."""

import random

import pytest

from mlagent_jax.config import PromptConfig
from mlagent_jax.errors import TaskError
from mlagent_jax.policy.base import Request
from mlagent_jax.policy.moves import apply_move
from mlagent_jax.policy.scripted import Habits, ScriptedPolicy, choose_action
from mlagent_jax.text.actions import parse_reply
from mlagent_jax.text.prompt import render_state
from mlagent_jax.text.prompt_reading import PromptStep
from mlagent_jax.types import ActionKind
from tests.policy.test_moves import FOREST, LASSO, MOVES, apply
from tests.samples import SCRIPT, make_edit, make_state, make_step, make_task

# Nothing is left to chance unless a test says so.
CALM = Habits(undo_worse=1.0, undo_failed=1.0, look=0.0, submit=1.0, min_free_moves=0)
BRIEF = PromptConfig(style="brief", history_steps=0)
FULL = PromptConfig(style="full", history_steps=None)


def choose(*, script=SCRIPT, ideas=(), steps=(), seed=0, habits=CALM, moves=MOVES):
    past = tuple(PromptStep(gist=gist, verdict=word) for gist, word in steps)
    rng = random.Random(seed)
    return choose_action(
        moves, script=script, ideas=ideas, steps=past, rng=rng, habits=habits
    )


def test_the_expert_carries_out_its_ideas_one_at_a_time():
    ideas = ["Center the features, and use the lasso."]
    first = choose(ideas=ideas)
    assert first.thought == "Center the features."
    script = apply(first, SCRIPT)
    steps = [("features -= features.mean(0)", "better")]
    second = choose(script=script, ideas=ideas, steps=steps)
    assert second.blocks[0][1] == LASSO.code + "\n"
    steps.append(("model = linear_model.Lasso()", "better"))
    last = choose(script=apply(second, script), ideas=ideas, steps=steps)
    assert last.kind is ActionKind.SUBMIT


def test_a_move_that_was_tried_and_taken_back_is_not_tried_again():
    steps = [("model = linear_model.Lasso()", "worse"), ("undo", "")]
    action = choose(ideas=["Use the lasso."], steps=steps)
    assert action.kind is ActionKind.SUBMIT


@pytest.mark.parametrize("word", ["worse", "error", "timeout", "bad submission"])
def test_a_change_that_did_harm_is_undone(word):
    steps = [("model = linear_model.Lasso()", word)]
    assert choose(steps=steps).kind is ActionKind.UNDO


def test_an_older_change_that_did_harm_is_undone_after_the_newer_one():
    steps = [("a = 1", "error"), ("b = 2", "error"), ("undo", "")]
    assert choose(steps=steps).kind is ActionKind.UNDO
    steps.append(("undo", ""))
    assert choose(steps=steps).kind is ActionKind.SUBMIT


@pytest.mark.parametrize("steps", [[("a = 1", "invalid")], [("run train.py", "same")]])
def test_there_is_nothing_to_undo_where_nothing_changed(steps):
    assert choose(steps=steps).kind is ActionKind.SUBMIT


def test_harm_is_sometimes_left_standing_but_never_submitted():
    habits = Habits(undo_worse=0.0, look=0.0, submit=1.0, min_free_moves=0)
    steps = [("model = linear_model.Lasso()", "worse")]
    going_on = choose(ideas=["Center the features."], steps=steps, habits=habits)
    assert going_on.kind is ActionKind.EDIT
    assert choose(steps=steps, habits=habits).kind is ActionKind.UNDO


def test_without_ideas_it_tries_some_moves_before_it_submits():
    habits = Habits(look=0.0, submit=1.0, min_free_moves=2)
    assert choose(habits=habits).kind is ActionKind.EDIT
    steps = [("a = 1", "better"), ("b = 1", "better")]
    assert choose(steps=steps, habits=habits).kind is ActionKind.SUBMIT


def test_free_moves_differ_between_seeds():
    habits = Habits(look=0.0, submit=0.0)
    actions = {choose(seed=seed, habits=habits).blocks for seed in range(20)}
    assert len(actions) == len(MOVES)


def test_free_moves_rather_leave_alone_what_was_done():
    habits = Habits(look=0.0, submit=0.0, new_dimension=1.0)
    script = apply(apply_move(FOREST, SCRIPT), SCRIPT)
    chosen = [choose(script=script, seed=s, habits=habits) for s in range(20)]
    assert {action.blocks[0][0] for action in chosen} == {
        'features = np.load("data/train.npy")\n'
    }


def test_it_also_looks_around():
    habits = Habits(look=1.0)
    kinds = {choose(seed=seed, habits=habits).kind for seed in range(30)}
    assert kinds == {ActionKind.READ, ActionKind.LIST, ActionKind.RUN}


def test_long_phrases_are_not_said():
    action = choose(
        ideas=["Use the lasso."], habits=Habits(look=0, max_thought_chars=5)
    )
    assert action.thought == ""


@pytest.mark.parametrize("cfg", [BRIEF, FULL])
def test_the_same_request_gets_the_same_valid_reply(cfg):
    edit = make_edit("model = linear_model.Ridge()\n", "model = 1\n")
    state = make_state([make_step(edit, 0.5, 0.6)])
    messages = render_state(make_task(), state, SCRIPT, cfg, ["Use the lasso."])
    texts = set()
    for policy in (ScriptedPolicy({"toy": MOVES}), ScriptedPolicy({"toy": MOVES})):
        for name in ("a", "b"):
            policy.submit(
                Request(
                    id=name, messages=messages, seed=5, task_id="toy", script=SCRIPT
                )
            )
        assert policy.num_pending() == 2
        replies = policy.poll()
        assert [reply.request_id for reply in replies] == ["a", "b"]
        assert policy.num_pending() == 0
        texts |= {reply.text for reply in replies}
    (text,) = texts
    assert parse_reply(text, max_chars=1000).blocks[0][1] == LASSO.code + "\n"


def test_a_task_without_moves_is_refused():
    policy = ScriptedPolicy({"toy": MOVES})
    with pytest.raises(TaskError, match="no moves for it"):
        policy.submit(Request(id="a", messages=(), seed=0, task_id="other"))
