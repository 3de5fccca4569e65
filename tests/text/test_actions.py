"""The action syntax: what is accepted, what is refused and how it is explained."""

import dataclasses
import random
import time

import pytest

from mlagent_jax.errors import ActionError
from mlagent_jax.text.actions import (
    USAGE,
    parse_reply,
    render_action,
    summarize_action,
)
from mlagent_jax.types import Action, ActionKind

EDIT = """\
<edit path="train.py">
<<<<<<< SEARCH
model = Ridge()
=======
model = Lasso()
>>>>>>> REPLACE
</edit>"""


def parse(reply: str, max_chars: int = 2_000_000) -> Action:
    return parse_reply(reply, max_chars=max_chars)


def refused(reply: str, max_chars: int = 2_000_000) -> ActionError:
    with pytest.raises(ActionError) as caught:
        parse(reply, max_chars)
    return caught.value


def test_an_edit_is_parsed_with_its_thought():
    action = parse(f"Lasso may do better.\n\n{EDIT}\nLet us see.")
    assert action == Action(
        kind=ActionKind.EDIT,
        path="train.py",
        blocks=(("model = Ridge()\n", "model = Lasso()\n"),),
        thought="Lasso may do better.\n\nLet us see.",
    )


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("<list/>", Action(kind=ActionKind.LIST)),
        ("<undo />  ", Action(kind=ActionKind.UNDO)),
        ("<submit/>\n", Action(kind=ActionKind.SUBMIT)),
        ('<run path="a.py"/>', Action(kind=ActionKind.RUN, path="a.py")),
        ('<read path="a.py"/>', Action(kind=ActionKind.READ, path="a.py")),
        (
            '<read path="a b.py"   first="3"/>',
            Action(kind=ActionKind.READ, path="a b.py", first_line=3),
        ),
        (
            '<lines first="1" last="2" path="a.py">\n\nx\n</lines>',
            Action(
                kind=ActionKind.LINES,
                path="a.py",
                first_line=1,
                last_line=2,
                content="\nx\n",
            ),
        ),
        (
            '<write path="a.py">\n</write>',
            Action(kind=ActionKind.WRITE, path="a.py"),
        ),
        (
            '<write path="a.py">\n<list/>\n  </write>\n=======\n</write>',
            Action(
                kind=ActionKind.WRITE,
                path="a.py",
                content="<list/>\n  </write>\n=======\n",
            ),
        ),
        (
            '<write path="a">\r\nx = "\0"\r\n</write>\r\n',
            Action(kind=ActionKind.WRITE, path="a", content='x = "\0"\n'),
        ),
        (
            '<write path="a">\n\ud83d\ude00 \ud83d \u2028\n</write>',
            Action(kind=ActionKind.WRITE, path="a", content="😀 \ufffd \u2028\n"),
        ),
    ],
)
def test_every_kind_of_action_is_parsed(reply, expected):
    assert parse(reply) == expected


def test_an_edit_may_have_several_blocks_and_may_delete():
    action = parse(
        '<edit path="a">\n<<<<<<< SEARCH \nx\n\n=======\n>>>>>>> REPLACE\n\n'
        "<<<<<<< SEARCH\ny\n=======\n\n>>>>>>> REPLACE\n</edit>"
    )
    assert action.blocks == (("x\n\n", ""), ("y\n", "\n"))


@pytest.mark.parametrize(
    ("reason", "reply", "hint"),
    [
        ("empty_reply", "", "Write one action"),
        ("empty_reply", " \n\t", "Write one action"),
        ("no_action", "I would try a forest.", "edit, lines, write"),
        ("no_action", "Here: <list/>", "start of its own line"),
        ("no_action", "  <list/>", "start of its own line"),
        ("no_action", '{"action": "list"}', "edit, lines, write"),
        ("several_actions", "<list/>\n<undo/>", "exactly one"),
        ("several_actions", "<list/> <undo/>", "exactly one"),
        ("several_actions", f"{EDIT}\n{EDIT}", "exactly one"),
        ("unknown_action", '<delete path="a"/>', "no action <delete>"),
        ("unknown_action", "<EDIT>", "no action <EDIT>"),
        ("malformed_action", "<list/> now", "nothing may follow"),
        ("malformed_action", "<list>", "<list/>"),
        ("malformed_action", '<write path="a"/>', "</write>"),
        ("malformed_action", '<write path="a">x</write>', "nothing may follow"),
        ("malformed_action", '<write path="a">\nx', "</write> is missing"),
        ("malformed_action", '<edit path="a">\n<list/>', "</edit> is missing"),
        ("malformed_action", '<edit path="a">\n</edit>', "<<<<<<< SEARCH' is missing"),
        ("malformed_action", '<edit path="a">\nx\n</edit>', "outside a block"),
        ("malformed_action", EDIT.replace("=======", "==="), "======="),
        ("malformed_action", EDIT.replace(">>>>>>> REPLACE\n", ""), ">>>>>>> REPLACE"),
        ("malformed_action", EDIT.replace("=======", "=======\n======="), "found '==="),
        ("malformed_action", '<write path="a">\n</write>\n</write>', "its content"),
        ("malformed_action", f"Here: {EDIT}", "start of its own line"),
        ("bad_attribute", "<read/>", "path is missing"),
        ("bad_attribute", '<read path=""/>', "path is missing"),
        ("bad_attribute", "<read path='a'/>", "cannot read the tag"),
        ("bad_attribute", '<read path="a"', "cannot read the tag"),
        ("bad_attribute", '<read path="a" path="b"/>', "given twice"),
        ("bad_attribute", '<read path="a" line="1"/>', "path, first, last"),
        ("bad_attribute", '<read path="a" first="-1"/>', "not a line number"),
        ("bad_attribute", '<read path="a" first="٣"/>', "not a line number"),
        ("bad_attribute", '<lines path="a" first="1">\n</lines>', "last is missing"),
    ],
)
def test_a_bad_reply_is_refused_with_a_lesson(reason, reply, hint):
    error = refused(reply)
    assert error.reason == reason
    assert hint in str(error)


def test_a_long_reply_is_refused_whatever_it_holds():
    assert refused("<list/>" + " " * 10, max_chars=10).reason == "reply_too_long"


@pytest.mark.parametrize(
    "reply",
    [
        "<" * 1_000_000,
        "<edit" + " " * 1_000_000,
        '<edit path="' + "a" * 1_000_000,
        '<edit a="' * 120_000,
        '<edit path="x">\n' * 60_000,
        "<<<<<<< SEARCH\n" * 60_000,
        "</think>\n" * 110_000,
        '<edit path="x">\n' + "=======\n" * 120_000 + "</edit>",
        "<read " + 'path="a" ' * 110_000,
        "\n" * 1_000_000,
        "\0" * 1_000_000,
        "\ud800" * 1_000_000,
        "<run" + "\t" * 1_000_000 + "/>",
    ],
    ids=lambda reply: repr(reply[:16]),
)
def test_a_hostile_megabyte_is_refused_at_once(reply):
    start_s = time.process_time()
    error = refused(reply)
    assert time.process_time() - start_s < 1.0
    assert len(str(error)) < 400


def test_any_prefix_and_any_noise_is_an_action_or_an_action_error():
    rng = random.Random(0)
    pieces = ["<", ">", "/", "edit", "write", ' path="a"', "\n", "=======", "x", '"']
    pieces += ["<<<<<<< SEARCH\n", ">>>>>>> REPLACE\n", "</edit>", "<list/>", "\0", "é"]
    replies = [EDIT[:n] for n in range(len(EDIT))]
    replies += ["".join(rng.choices(pieces, k=12)) for _ in range(3_000)]
    num_parsed = 0
    for reply in replies:
        try:
            action = parse(reply)
        except ActionError:
            continue
        num_parsed += 1
        assert parse(render_action(action)) == action
    assert num_parsed > 10


def _random_text(rng: random.Random, *, is_block: bool) -> str:
    lines = ["x = 1", "", "  <list/>", "\tindent ", "</edi>", "é\u2028\0", "==="]
    if not is_block:
        lines += ["=======", "<<<<<<< SEARCH", ">>>>>>> REPLACE", "<list/>", "<edit>"]
    return "".join(f"{line}\n" for line in rng.choices(lines, k=rng.randrange(5)))


def _random_action(rng: random.Random) -> Action:
    kind = rng.choice(list(USAGE))
    thought = rng.choice(
        ["", "Why not?", "  <list/> is one\n\n> quoted", "<b>bold</b>"]
    )
    action = Action(kind=kind, thought=thought)
    if kind in {ActionKind.LIST, ActionKind.UNDO, ActionKind.SUBMIT}:
        return action
    path = rng.choice(["train.py", "a/b c.txt", "../x", "<&>'\t"])
    action = dataclasses.replace(action, path=path)
    if kind is ActionKind.READ:
        first, last = rng.choice([(None, None), (3, None), (None, 9), (0, 12)])
        return dataclasses.replace(action, first_line=first, last_line=last)
    if kind is ActionKind.LINES:
        action = dataclasses.replace(action, first_line=2, last_line=1)
    if kind in {ActionKind.LINES, ActionKind.WRITE}:
        content = _random_text(rng, is_block=False)
        return dataclasses.replace(action, content=content)
    if kind is ActionKind.EDIT:
        blocks = tuple(
            (_random_text(rng, is_block=True), _random_text(rng, is_block=True))
            for _ in range(rng.randrange(1, 4))
        )
        return dataclasses.replace(action, blocks=blocks)
    return action


def test_rendered_actions_are_parsed_back():
    rng = random.Random(1)
    for _ in range(2_000):
        action = _random_action(rng)
        assert parse(render_action(action)) == action


def test_rendering_adds_missing_newlines_and_drops_blank_lines_around_a_thought():
    action = Action(
        kind=ActionKind.EDIT, path="a", blocks=(("x", "y"),), thought="\nok \n\n"
    )
    parsed = parse(render_action(action))
    assert parsed.blocks == (("x\n", "y\n"),)
    assert parsed.thought == "ok "


@pytest.mark.parametrize(
    "action",
    [
        Action(kind=ActionKind.EDIT, path="a", blocks=(("=======\n", ""),)),
        Action(kind=ActionKind.EDIT, path="a", blocks=(("x\n", "=======  \n"),)),
        Action(kind=ActionKind.EDIT, path="a", blocks=(("x\n", "</edit>\n"),)),
        Action(kind=ActionKind.EDIT, path="a"),
        Action(kind=ActionKind.WRITE, path="a", content="x\n</write>\ny\n"),
        Action(kind=ActionKind.WRITE, path="a", content="x\r\n"),
        Action(kind=ActionKind.WRITE, path="a", content="\ud800\n"),
        Action(kind=ActionKind.WRITE, path='"', content="x\n"),
        Action(kind=ActionKind.WRITE, path="a\nb", content="x\n"),
        Action(kind=ActionKind.WRITE, content="x\n"),
        Action(kind=ActionKind.LIST, path="a"),
        Action(kind=ActionKind.LIST, content="x\n"),
        Action(kind=ActionKind.LIST, thought="first\n<undo/>"),
        Action(kind=ActionKind.READ, path="a", first_line=-1),
    ],
)
def test_what_the_syntax_cannot_express_is_no_reply(action):
    with pytest.raises(ValueError, match=r"read back|as a reply"):
        render_action(action)


@pytest.mark.parametrize("kind", list(USAGE))
def test_the_usage_texts_are_themselves_actions(kind):
    assert parse(USAGE[kind]).kind is kind


def test_summaries_are_one_short_line():
    assert summarize_action(parse(EDIT)) == "edit train.py (-1 +1 lines)"
    reply = '<lines path="a" first="3" last="5">\nx\ny\n</lines>'
    assert summarize_action(parse(reply)) == "lines a 3-5 (2 lines)"
    assert summarize_action(parse('<read path="a" first="3"/>')) == "read a 3-end"
    assert summarize_action(parse("<undo/>")) == "undo"
    long = summarize_action(parse('<run path="' + "a\t" * 500 + '"/>'))
    assert len(long) < 80
    assert long.isprintable()
