"""Ideas of a language model: read from any form of reply, asked for only once."""

import json

import pytest

from mlagent_jax.config import IdeasConfig
from mlagent_jax.errors import PolicyError
from mlagent_jax.explore.written_ideas import idea_prompt, parse_ideas, write_ideas
from mlagent_jax.policy.base import Reply
from tests.fakes import FakePolicy
from tests.samples import SCRIPT, make_task

TWO = ["Scale the features first.", "Use a random forest."]


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps(TWO),
        f"Here they are:\n```json\n{json.dumps(TWO, indent=2)}\n```",
        "1. Scale the features first.\n2) Use a random forest.",
        "- Scale the  features first.\n* Use a random forest.\n\nGood luck!",
        '["Scale the features first.", "Use a random forest.", "Then try a neu',
        json.dumps([*TWO, 7, None, "short", "x" * 500]),
    ],
)
def test_ideas_are_read_from_whatever_form_the_model_chose(reply):
    assert parse_ideas(reply) == TWO


@pytest.mark.parametrize("reply", ["", "I cannot help.", "[]", "[" * 50_000, "{}"])
def test_a_reply_without_ideas_gives_none(reply):
    assert parse_ideas(reply) == []


def test_the_prompt_has_task_script_and_what_is_known():
    system, user = idea_prompt(make_task(), 7, TWO)
    assert system.role == "system"
    for text in (SCRIPT, "Predict the toy target.", "accuracy", "7 further", *TWO):
        assert text in user.content


class Writer(FakePolicy):
    """Writes numbered ideas; every second one of a reply repeats an earlier one."""

    def __init__(self, fail_at=None):
        super().__init__(self.answer)
        self.fail_at = fail_at

    def answer(self, request):
        number = int(request.id.rpartition("/")[2])
        if number == self.fail_at:
            return Reply(request_id=request.id, text="", finish="error", error="down")
        new = [f"Try the model number {number * 3 + i}." for i in range(3)]
        return json.dumps([*new, "try the MODEL number 0!"])


def write(folder, policy, *, num_ideas=7, stop_reason=lambda: "", **changes):
    return write_ideas(
        policy,
        make_task(),
        num_ideas=num_ideas,
        cfg=IdeasConfig(ideas_a_request=3, **changes),
        folder=folder,
        seed=5,
        stop_reason=stop_reason,
    )


def test_a_pool_is_asked_for_in_parts_and_has_no_idea_twice(tmp_path):
    policy = Writer()
    ideas = write(tmp_path, policy)
    assert ideas == tuple(f"Try the model number {i}." for i in range(7))
    assert len(policy.requests) == 3
    assert "number 5" in policy.requests[2].messages[1].content


def test_what_was_written_is_never_asked_for_again(tmp_path):
    with pytest.raises(PolicyError, match="down"):
        write(tmp_path, Writer(fail_at=2))
    policy = Writer()
    assert len(write(tmp_path, policy)) == 7
    assert [r.id for r in policy.requests] == ["ideas/toy/2"]
    again = Writer()
    assert len(write(tmp_path, again)) == 7
    assert not again.requests


def test_a_reason_to_stop_is_obeyed_and_named(tmp_path):
    policy = Writer()
    with pytest.raises(PolicyError, match=r"stopped with 0 of 7 ideas: no money\."):
        write(tmp_path, policy, stop_reason=lambda: "no money")
    assert not policy.requests


def test_a_model_that_repeats_itself_is_given_up(tmp_path):
    policy = FakePolicy(lambda request: json.dumps(TWO))
    with pytest.raises(PolicyError, match="4 requests gave 2 different ideas, but 7"):
        write(tmp_path, policy, max_requests=4)
