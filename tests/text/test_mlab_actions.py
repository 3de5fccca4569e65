"""Replies of profile `mlab`: what counts, what does not, and the way back."""

import json
import random

import pytest

from mlagent_jax.errors import ActionError
from mlagent_jax.text.mlab_actions import FIELDS, TOOLS, parse_reply, render_action
from mlagent_jax.types import Action, ActionKind

EDIT = {
    "script_name": "train.py",
    "edit_instruction": "Use a ridge.",
    "save_name": "train.py",
}


def reply(name="Edit Script (AI)", values=EDIT, **changes):
    text = values if isinstance(values, str) else json.dumps(values)
    fields = {
        "Reflection": "None yet.",
        "Research Plan and Status": "1. Ridge.\n**2. Lasso.**",
        "Fact Check": "Guessed.",
        "Thought": "Try it.",
        "Action": name,
        "Action Input": text,
    }
    fields |= changes
    return "\n".join(f"{label}: {text}" for label, text in fields.items())


def parse(text):
    return parse_reply(text, max_chars=100_000)


def refused(text):
    with pytest.raises(ActionError) as caught:
        parse(text)
    return caught.value


@pytest.mark.parametrize(
    ("name", "values", "action"),
    [
        ("List Files", {"dir_path": "."}, Action(kind=ActionKind.LIST, path=".")),
        (
            "Copy File",
            {"source": "a", "destination": "b"},
            Action(kind=ActionKind.COPY, path="a", target="b"),
        ),
        (
            "Undo Edit Script",
            {"script_name": "a"},
            Action(kind=ActionKind.UNDO, path="a"),
        ),
        ("Execute Script", {"script_name": "a"}, Action(kind=ActionKind.RUN, path="a")),
        (
            "Final Answer",
            {"final_answer": "Done."},
            Action(kind=ActionKind.SUBMIT, content="Done."),
        ),
        (
            "Understand File",
            {"file_name": "a", "things_to_look_for": "the loss"},
            Action(kind=ActionKind.UNDERSTAND, path="a", content="the loss"),
        ),
        (
            "Inspect Script Lines",
            {"script_name": "a", "start_line_number": 3, "end_line_number": " 10 "},
            Action(kind=ActionKind.INSPECT, path="a", first_line=3, last_line=10),
        ),
        (
            "Edit Script (AI)",
            EDIT,
            Action(
                kind=ActionKind.ASK_EDIT,
                path="train.py",
                target="train.py",
                content="Use a ridge.",
            ),
        ),
    ],
)
def test_each_of_the_eight_actions_is_read(name, values, action):
    found = parse(reply(name, values))
    assert found.thought.startswith("Reflection: None yet.\nResearch Plan and Status:")
    assert found.thought.endswith("Thought: Try it.")
    assert parse(render_action(found)) == found
    assert (found.kind, found.path, found.target) == (
        action.kind,
        action.path,
        action.target,
    )
    assert (found.content, found.first_line, found.last_line) == (
        action.content,
        action.first_line,
        action.last_line,
    )
    assert name in TOOLS


def test_an_observation_that_the_model_invents_is_cut_off():
    text = reply() + "\nObservation: It works.\n" + reply("Final Answer", {})
    assert parse(text).kind is ActionKind.ASK_EDIT


@pytest.mark.parametrize(
    "name",
    [
        "Read File",
        "Write File",
        "Append File",
        "Python REPL",
        "Request Help",
        "Edit Script Segment (AI)",
        "Reflection",
        "Retrieval from Research Log",
        "Append Summary to Research Log",
        "edit script (ai)",
        "undo",
        "",
    ],
)
def test_hidden_and_unknown_actions_cannot_be_called(name):
    error = refused(reply(name, {"file_name": "a"}))
    assert error.reason == "unknown_action"
    assert "Edit Script (AI)" in str(error)


def test_two_actions_are_none():
    text = reply("List Files", {"dir_path": "."})
    assert refused(f"{text}\n{text}").reason == "several_actions"
    again = "\nAction: Final Answer\nAction Input: {}"
    assert refused(text + again).reason == "several_actions"


@pytest.mark.parametrize("field", FIELDS[:4])
def test_every_field_must_be_there_once(field):
    assert refused(reply().replace(f"{field}:", "x:")).reason == "malformed_action"
    assert refused(f"{field}: again\n{reply()}").reason == "malformed_action"


def test_fields_out_of_order_are_refused():
    lines = reply().split("\n")
    assert refused("\n".join([lines[-1], *lines[:-1]])).reason == "malformed_action"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ("{", "no JSON"),
        ("", "no JSON"),
        ("[]", "no JSON object"),
        ('"train.py"', "no JSON object"),
        ("null", "no JSON object"),
        ("{} {}", "no JSON"),
        ("```json\n{}\n```", "no JSON"),
        ({**EDIT, "extra": "x"}, "extra are unknown"),
        ({"script_name": "a"}, "edit_instruction, save_name are missing"),
        ('{"script_name": "a", "script_name": "b"}', "script_name are given twice"),
        ({**EDIT, "save_name": 3}, "save_name is no string"),
        ({**EDIT, "save_name": None}, "save_name is no string"),
        ({**EDIT, "save_name": ["a"]}, "save_name is no string"),
        ('{"save_name": NaN}', "NaN is no JSON"),
        ("[" * 50_000, "nested too deeply"),
        ('{"a":' * 15_000, "nested too deeply"),
        ("1" * 9_000, "no JSON"),
    ],
)
def test_a_wrong_input_is_explained(values, problem):
    error = refused(reply(values=values))
    assert error.reason == "bad_input"
    assert problem in str(error)
    assert "script_name, edit_instruction, save_name" in str(error)
    assert len(str(error)) < 1_500


@pytest.mark.parametrize("number", ["0x1", "-1", "1.0", "", "9" * 10, "³"])
def test_a_line_number_is_a_number(number):
    values = {"script_name": "a", "start_line_number": number, "end_line_number": "3"}
    assert refused(reply("Inspect Script Lines", values)).reason == "bad_input"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty_reply"),
        (" \n", "empty_reply"),
        ("x" * 100_001, "reply_too_long"),
        ("Thought: I will list files.", "no_action"),
        ("<list/>", "no_action"),
        ("\0\ud800Action", "no_action"),
    ],
)
def test_a_reply_without_an_action_says_how_to_write_one(text, reason):
    error = refused(text)
    assert error.reason == reason
    str(error).encode()


def test_surrogates_of_json_escapes_never_get_through():
    action = parse(reply("Execute Script", '{"script_name": "a\\ud800b"}'))
    assert action.path == "a\ufffdb"


def test_what_was_read_can_be_written():
    rng = random.Random(0)
    pieces = [
        *(f"\n{field}: " for field in FIELDS),
        "List Files",
        "{",
        "}",
        '"dir_path"',
    ]
    pieces += [":", '"."', "\n", "x", "\0", "Final Answer"]
    good = reply("List Files", {"dir_path": "."})
    replies = [good[:n] for n in range(len(good))]
    replies += ["".join(rng.choices(pieces, k=20)) for _ in range(2_000)]
    num_parsed = 0
    for text in [*replies, good]:
        try:
            action = parse(text)
        except ActionError:
            continue
        num_parsed += 1
        assert parse(render_action(action)) == action
    assert num_parsed


def test_an_action_of_the_other_profile_is_no_reply():
    with pytest.raises(ValueError, match="no action of profile `mlab`"):
        render_action(Action(kind=ActionKind.LINES, path="a"))
