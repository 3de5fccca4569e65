"""Quoting practice: what is exchanged, what is learnt, and that it still fits."""

import random

import pytest

from mlagent_jax.config import PromptConfig
from mlagent_jax.data.examples import TrainingChat
from mlagent_jax.data.renaming import rename_chat, renamed_examples
from mlagent_jax.text.actions import parse_reply, render_action
from mlagent_jax.text.prompt import render_state
from mlagent_jax.text.prompt_reading import split_script
from mlagent_jax.text.tokenizer import Tokenizer
from mlagent_jax.types import Action, ActionKind, Message
from tests.samples import SCRIPT, make_edit, make_state, make_task

WORDS = [f"word_{'abcdefghij'[i]}" for i in range(10)] + [str(i) for i in range(40)]
MODEL = "model = linear_model.Ridge()\n"
EDIT = make_edit(MODEL, "model = ensemble.Forest(7)\n", thought="Use a forest.")


def make_chat(action: Action = EDIT) -> TrainingChat:
    cfg = PromptConfig(style="brief", history_steps=0)
    messages = render_state(make_task(), make_state(), SCRIPT, cfg)
    reply = Message(role="assistant", content=render_action(action))
    return TrainingChat(name="t@0", messages=(*messages, reply), targets=(True,))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([SCRIPT * 3], 320)


@pytest.mark.parametrize("seed", range(20))
def test_the_quoted_line_stands_once_in_the_renamed_script(seed):
    renamed = rename_chat(make_chat(), WORDS, random.Random(seed))
    assert renamed is not None
    _, script, _ = split_script(renamed.messages[1].content)
    quoted = renamed.messages[-1].content
    whole = parse_reply(f"{quoted}>>>>>>> REPLACE\n</edit>", max_chars=10_000)
    ((search, replace),) = whole.blocks
    assert script.count(search) == 1
    assert replace == ""
    assert len(script.splitlines()) == len(SCRIPT.splitlines())


def test_words_are_exchanged_one_to_one():
    renamed = rename_chat(make_chat(), WORDS, random.Random(0))
    assert renamed is not None
    _, script, _ = split_script(renamed.messages[1].content)
    assert script != SCRIPT
    pairs = set(zip(SCRIPT.split(), script.split(), strict=True))
    assert (
        len({old for old, _ in pairs}) == len({new for _, new in pairs}) == len(pairs)
    )


def test_what_is_not_script_stays():
    chat = make_chat()
    renamed = rename_chat(chat, WORDS, random.Random(1))
    assert renamed is not None
    before, _, after = split_script(chat.messages[1].content)
    assert renamed.messages[1].content.startswith(before)
    assert renamed.messages[1].content.endswith(after)
    assert renamed.messages[-1].content.startswith("Use a forest.\n<edit path=")


@pytest.mark.parametrize("kind", [ActionKind.UNDO, ActionKind.SUBMIT])
def test_other_actions_are_no_practice(kind):
    chat = make_chat(Action(kind=kind))
    assert rename_chat(chat, WORDS, random.Random(0)) is None


def test_only_the_quotation_is_learnt(tokenizer):
    (example,) = renamed_examples([make_chat()], 1.0, tokenizer, seed=3)
    learnt = tokenizer.decode(example.tokens_T[example.loss_mask_T].tolist())
    assert learnt.startswith("Use a forest.\n<edit")
    assert learnt.endswith("\n=======\n")
    # Nothing behind the divider, so nothing says that a reply ends there.
    assert example.loss_mask_T[-1]


def test_the_same_seed_makes_the_same_practice(tokenizer):
    chats = [make_chat()]
    first, second, other = (
        [e.tokens_T.tolist() for e in renamed_examples(chats, 2.0, tokenizer, seed)]
        for seed in (5, 5, 6)
    )
    assert first == second != other
    assert len(first) == 2
    assert list(renamed_examples(chats, 0.0, tokenizer, 5)) == []
