"""The chat of profile `mlab`: three steps of memory, and what the expert reads back."""

import json

from mlagent_jax.config import PromptConfig
from mlagent_jax.text.mlab_actions import TOOLS
from mlagent_jax.text.mlab_prompt import (
    read_ideas,
    read_steps,
    render_state,
    window_snapshot,
)
from mlagent_jax.text.profiles import DIRECT, MLAB
from mlagent_jax.text.prompt_reading import PromptStep
from mlagent_jax.text.wording import action_gist
from mlagent_jax.text.written_edits import read_instruction, write_instruction
from mlagent_jax.types import ActionKind, Outcome
from tests.samples import SCRIPT, make_edit, make_state, make_step, make_task

CFG = PromptConfig()
RIDGE = make_edit("model = linear_model.Ridge()\n", "model = linear_model.Lasso()\n")


def step(number, **changes):
    reply = MLAB.render_action(MLAB.express(RIDGE, "train.py"))
    snapshots = (f"s{number}", f"s{number + 1}")
    base = {"before": 0.5, "after": 0.4, "feedback": f"Seen {number}."}
    return make_step(reply, **{**base, **changes}, snapshots=snapshots)


STEPS = tuple(step(i) for i in range(5))


def test_only_the_last_three_steps_are_shown():
    messages = render_state(make_task(), make_state(STEPS), SCRIPT, CFG)
    assert [m.role for m in messages] == ["system", "user", *["assistant", "user"] * 3]
    text = "\n".join(m.content for m in messages)
    assert "Seen 2." in text
    assert "Seen 1." not in text
    assert "[2 earlier steps are done" in text
    assert [m.content for m in messages[2::2]] == [s.reply for s in STEPS[2:]]
    assert window_snapshot(make_state(STEPS), CFG) == "s2"
    assert window_snapshot(make_state(), CFG) == "s0"


def test_the_script_is_not_shown_but_every_action_is():
    messages = render_state(make_task(), make_state(), SCRIPT, CFG)
    assert not any("linear_model" in m.content for m in messages)
    for name, tool in TOOLS.items():
        head, _, rest = messages[0].content.partition(f"- {name}: ")
        assert rest, name
        usage = rest[rest.index("{") : rest.index("}") + 1]
        assert set(json.loads(usage)) == set(tool.arguments)
        assert head


def test_a_long_observation_loses_its_middle():
    long = step(0, feedback="a" * 6_000 + "MIDDLE" + "z" * 6_000)
    messages = render_state(
        make_task(), make_state([long]), SCRIPT, PromptConfig(max_feedback_chars=9_999)
    )
    shown = messages[-1].content
    assert len(shown) < 5_100
    assert "MIDDLE" not in shown
    assert shown.endswith("z")


def test_the_expert_reads_back_ideas_and_steps():
    ideas = ("Use the lasso.", "Scale the features.")
    steps = [
        step(0),
        step(1, after=None, outcome=Outcome.SCRIPT_ERROR),
        make_step("hello", 0.5, None, Outcome.INVALID_ACTION),
    ]
    messages = render_state(make_task(), make_state(steps), SCRIPT, CFG, ideas)
    assert read_ideas(messages) == ideas
    assert read_ideas(render_state(make_task(), make_state(), SCRIPT, CFG)) == ()
    assert read_steps(messages) == (
        PromptStep(gist=action_gist(RIDGE), verdict="worse"),
        PromptStep(gist=action_gist(RIDGE), verdict="error"),
        PromptStep(gist="no action", verdict="invalid"),
    )


def test_a_written_edit_can_be_followed_to_the_letter():
    blocks = (("a\n", "b\n```\n"), ("c\n", ""))
    assert read_instruction(write_instruction(blocks, "Make it better.")) == blocks
    assert read_instruction("Use a ridge.") == ()


def test_profiles_express_the_experts_actions():
    assert DIRECT.express(RIDGE, "train.py") is RIDGE
    asked = MLAB.express(RIDGE, "train.py")
    assert (asked.kind, asked.target) == (ActionKind.ASK_EDIT, "train.py")
    assert read_instruction(asked.content) == RIDGE.blocks
