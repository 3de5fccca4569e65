"""The action syntax of profile `direct`: from a reply to an `Action` and back.

A reply holds exactly one element; the free text around it is the thought. Here
only the syntax is decided: whether a path exists or a search text occurs is the
business of `env.workspace`.

Rules, each checked line by line, so parsing is linear in the reply's length:

- An opening tag starts at the first column and has its line for itself. Attributes
  stand in double quotes; there are no escapes.
- `edit`, `lines` and `write` have a body: the lines up to the first line that is
  the closing tag. Other tags inside a body are content. The remaining elements
  close themselves (`<list/>`).
- A body is whole lines, each ended by a newline. No line means empty text: an
  empty file, deleted lines, a deleted match.
- The three marker lines of a search/replace block, the closing tag of the element
  and, as far as the thought goes, any action tag at the first column cannot be
  content. Where one turns up out of place the reply is refused, never guessed at.
  A file that must contain a marker line is changed with `lines` or `write`.
- Trailing white space after tags and markers is ignored, CRLF counts as LF, and
  lone surrogates (no file can hold them) become U+FFFD.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, NoReturn

from mlagent_jax.errors import ActionError
from mlagent_jax.types import Action, ActionKind

SEARCH_MARKER = "<<<<<<< SEARCH"
DIVIDER_MARKER = "======="
REPLACE_MARKER = ">>>>>>> REPLACE"
_MARKERS = frozenset({SEARCH_MARKER, DIVIDER_MARKER, REPLACE_MARKER})

USAGE: Mapping[ActionKind, str] = MappingProxyType(
    {
        ActionKind.EDIT: (
            '<edit path="FILE">\n<<<<<<< SEARCH\nold lines\n=======\nnew lines\n'
            ">>>>>>> REPLACE\n</edit>"
        ),
        ActionKind.LINES: (
            '<lines path="FILE" first="3" last="5">\nnew lines\n</lines>'
        ),
        ActionKind.WRITE: '<write path="FILE">\nwhole file\n</write>',
        ActionKind.READ: '<read path="FILE"/>',
        ActionKind.LIST: "<list/>",
        ActionKind.RUN: '<run path="FILE"/>',
        ActionKind.UNDO: "<undo/>",
        ActionKind.SUBMIT: "<submit/>",
    }
)
"""The written form of every action, for prompts and error texts."""


class _Form(NamedTuple):
    """Which attributes an element must and may have, and whether it has a body."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    has_body: bool = False


_FORMS: Mapping[ActionKind, _Form] = MappingProxyType(
    {
        ActionKind.EDIT: _Form(("path",), has_body=True),
        ActionKind.LINES: _Form(("path", "first", "last"), has_body=True),
        ActionKind.WRITE: _Form(("path",), has_body=True),
        ActionKind.READ: _Form(("path",), ("first", "last")),
        ActionKind.LIST: _Form(),
        ActionKind.RUN: _Form(("path",)),
        ActionKind.UNDO: _Form(),
        ActionKind.SUBMIT: _Form(),
    }
)
_KINDS: Mapping[str, ActionKind] = {kind.value: kind for kind in _FORMS}
_NAMES = ", ".join(_KINDS)

_TAG = re.compile(r"<([A-Za-z_][A-Za-z0-9_-]*+)(?=[\s/>]|$)")
_STRAY_TAG = re.compile(rf"<(?:{'|'.join(_KINDS)})(?=[\s/>])")
_CLOSING_TAG = re.compile(rf"</({'|'.join(_KINDS)})\s*+>")
_ATTRIBUTE = re.compile(r'\s++([A-Za-z_]++)="([^"]*+)"')
_TAG_END = re.compile(r"\s*+(/?)>")
_LINE_NUMBER = re.compile(r"[0-9]{1,9}")
_MAX_SHOWN_CHARS = 60


def parse_reply(reply: str, *, max_chars: int) -> Action:
    """Returns the one action that `reply` asks for.

    Args:
      reply: what the policy wrote; any string.
      max_chars: characters allowed.

    Raises:
      ActionError: with reason `empty_reply`, `reply_too_long`, `no_action`,
        `several_actions`, `unknown_action`, `malformed_action` or `bad_attribute`;
        its text tells the agent what to write instead.
    """
    if len(reply) > max_chars:
        raise ActionError(
            "reply_too_long",
            f"The reply has {len(reply)} characters; at most {max_chars} are allowed. "
            "Write a shorter one.",
        )
    if not reply.strip():
        raise ActionError(
            "empty_reply", f"The reply is empty. Write one action: {_NAMES}."
        )
    lines = replace_surrogates(reply).replace("\r\n", "\n").split("\n")
    found: Action | None = None
    thought: list[str] = []
    unknown = ""
    position = 0
    while position < len(lines):
        line = lines[position]
        tag = _TAG.match(line)
        kind = _KINDS.get(tag[1]) if tag else None
        if kind is None or tag is None:
            _refuse_closing_tag(line, is_after_action=found is not None)
            unknown = unknown or (tag[1] if tag else "")
            thought.append(line)
            position += 1
            continue
        if found is not None:
            _refuse_several()
        found, position = _parse_element(kind, lines, position, tag.end())
    if found is None:
        _refuse_nothing(reply, unknown)
    return dataclasses.replace(found, thought=_without_outer_blank_lines(thought))


def render_action(action: Action) -> str:
    r"""Returns the reply that asks for `action`: its thought, then its element.

    Texts are whole lines: a missing newline at the end of a text is added, and
    blank lines around the thought are dropped; apart from that `parse_reply` of the
    result gives the action back.

    Raises:
      ValueError: the syntax cannot express the action, e.g. because a search text
        contains a line `=======`.
    """
    action = dataclasses.replace(
        action,
        thought=_without_outer_blank_lines(action.thought.split("\n")),
        content=end_last_line(action.content),
        blocks=tuple((end_last_line(s), end_last_line(r)) for s, r in action.blocks),
    )
    form = _FORMS.get(action.kind)
    if form is None:
        raise ValueError(f"{action.kind}: is no action of profile `direct`")
    values = {"path": action.path, "first": action.first_line, "last": action.last_line}
    attributes = "".join(
        f' {name}="{values[name]}"'
        for name in form.required + form.optional
        if values[name] is not None
    )
    name = action.kind.value
    if form.has_body:
        body = action.content + "".join(_render_block(*b) for b in action.blocks)
        element = f"<{name}{attributes}>\n{body}</{name}>"
    else:
        element = f"<{name}{attributes}/>"
    text = f"{action.thought}\n{element}" if action.thought else element
    # Whatever cannot be expressed shows up as a difference after the way back.
    try:
        parsed = parse_reply(text, max_chars=len(text))
    except ActionError as error:
        raise ValueError(f"{name}: cannot be written as a reply: {error}") from error
    if parsed != action:
        raise ValueError(f"{name}: would be read back as {parsed}, not {action}")
    return text


def summarize_action(action: Action) -> str:
    """Returns one short line about `action`, e.g. "edit train.py (-1 +2 lines)"."""
    words = [action.kind.value]
    if action.path is not None:
        words.append(_shown(action.path))
    if action.first_line is not None or action.last_line is not None:
        words.append(f"{action.first_line or 1}-{action.last_line or 'end'}")
    if action.kind is ActionKind.EDIT:
        removed = sum(search.count("\n") for search, _ in action.blocks)
        added = sum(replace.count("\n") for _, replace in action.blocks)
        words.append(f"(-{removed} +{added} lines)")
    elif action.kind in (ActionKind.LINES, ActionKind.WRITE):
        words.append(f"({action.content.count(chr(10))} lines)")
    return " ".join(words)


def replace_surrogates(text: str) -> str:
    """Returns `text` with surrogate pairs joined and lone ones as U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def end_last_line(text: str) -> str:
    """Returns `text` with a newline at its end, unless it is empty."""
    return text + "\n" if text and not text.endswith("\n") else text


def _parse_element(
    kind: ActionKind, lines: Sequence[str], start: int, column: int
) -> tuple[Action, int]:
    """Returns the action whose opening tag is line `start`, and the line after it."""
    form = _FORMS[kind]
    line = lines[start]
    attributes: dict[str, str] = {}
    while match := _ATTRIBUTE.match(line, column):
        if match[1] in attributes:
            _refuse_attribute(kind, f"the attribute {match[1]} is given twice")
        attributes[match[1]] = match[2]
        column = match.end()
    end = _TAG_END.match(line, column)
    if end is None:
        _refuse_attribute(kind, f"cannot read the tag at {_shown(line[column:])!r}")
    rest = line[end.end() :].strip()
    if rest and _STRAY_TAG.search(rest):
        _refuse_several()
    if rest:
        _refuse_element(kind, f"nothing may follow the tag on its line: {_shown(rest)}")
    if bool(end[1]) == form.has_body:
        _refuse_element(kind, "wrong kind of tag")
    action = _with_attributes(kind, form, attributes)
    if not form.has_body:
        return action, start + 1
    closing = f"</{kind.value}>"
    for stop in range(start + 1, len(lines)):
        if lines[stop].startswith("</") and lines[stop].rstrip() == closing:
            body = lines[start + 1 : stop]
            return _with_body(action, body), stop + 1
    _refuse_element(kind, f"the closing line {closing} is missing")


def _with_attributes(
    kind: ActionKind, form: _Form, attributes: Mapping[str, str]
) -> Action:
    allowed = form.required + form.optional
    for name in attributes:
        if name not in allowed:
            takes = f"it takes {', '.join(allowed)}" if allowed else "it takes none"
            _refuse_attribute(kind, f"no attribute {_shown(name)}; {takes}")
    for name in form.required:
        if not attributes.get(name):
            _refuse_attribute(kind, f"the attribute {name} is missing")
    numbers: dict[str, int | None] = {"first": None, "last": None}
    for name in numbers:
        text = attributes.get(name)
        if text is None:
            continue
        if not _LINE_NUMBER.fullmatch(text):
            _refuse_attribute(kind, f"{name}={_shown(text)!r} is not a line number")
        numbers[name] = int(text)
    return Action(
        kind=kind,
        path=attributes.get("path"),
        first_line=numbers["first"],
        last_line=numbers["last"],
    )


def _with_body(action: Action, body: Sequence[str]) -> Action:
    if action.kind is ActionKind.EDIT:
        return dataclasses.replace(action, blocks=tuple(_parse_blocks(body)))
    return dataclasses.replace(action, content=_join(body))


def _parse_blocks(body: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields the (search, replace) texts of an `edit` body."""
    expected = SEARCH_MARKER
    search: list[str] = []
    replace: list[str] = []
    num_blocks = 0
    for line in body:
        marker = line.rstrip()
        if marker in _MARKERS and marker != expected:
            _refuse_element(
                ActionKind.EDIT, f"found {marker!r} where {expected!r} must come next"
            )
        if marker == SEARCH_MARKER:
            expected = DIVIDER_MARKER
        elif marker == DIVIDER_MARKER:
            expected = REPLACE_MARKER
        elif marker == REPLACE_MARKER:
            yield _join(search), _join(replace)
            search, replace = [], []
            num_blocks += 1
            expected = SEARCH_MARKER
        elif expected == DIVIDER_MARKER:
            search.append(line)
        elif expected == REPLACE_MARKER:
            replace.append(line)
        elif marker:
            _refuse_element(ActionKind.EDIT, f"text outside a block: {_shown(line)!r}")
    if expected != SEARCH_MARKER or num_blocks == 0:
        _refuse_element(ActionKind.EDIT, f"the line {expected!r} is missing")


def _render_block(search: str, replace: str) -> str:
    return f"{SEARCH_MARKER}\n{search}{DIVIDER_MARKER}\n{replace}{REPLACE_MARKER}\n"


def _join(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _without_outer_blank_lines(lines: Sequence[str]) -> str:
    kept = [i for i, line in enumerate(lines) if line.strip()]
    # Spaces at the start stay: they are what keeps a quoted tag from being one.
    return "\n".join(lines[kept[0] : kept[-1] + 1]) if kept else ""


def _shown(text: str) -> str:
    """Returns at most `_MAX_SHOWN_CHARS` printable characters of `text`."""
    head = text[:_MAX_SHOWN_CHARS]
    cut = "..." if len(text) > len(head) else ""
    return "".join(c if c.isprintable() else "?" for c in head) + cut


def _refuse_closing_tag(line: str, *, is_after_action: bool) -> None:
    if not line.startswith("</") or not (match := _CLOSING_TAG.match(line)):
        return
    why = (
        "The first such line ended the action, so it cannot be part of its content."
        if is_after_action
        else "An opening tag must stand at the very start of its own line."
    )
    raise ActionError(
        "malformed_action", f"The line </{match[1]}> closes nothing. {why}"
    )


def _refuse_nothing(reply: str, unknown: str) -> NoReturn:
    if unknown:
        raise ActionError(
            "unknown_action",
            f"There is no action <{_shown(unknown)}>. Actions: {_NAMES}.",
        )
    hint = ""
    if _STRAY_TAG.search(reply):
        hint = " A tag must stand at the very start of its own line."
    raise ActionError(
        "no_action", f"The reply holds no action.{hint} Write one of: {_NAMES}."
    )


def _refuse_several() -> NoReturn:
    raise ActionError(
        "several_actions",
        "The reply holds more than one action; none was carried out. Write exactly "
        "one.",
    )


def _refuse_attribute(kind: ActionKind, problem: str) -> NoReturn:
    raise ActionError("bad_attribute", _teach(kind, problem))


def _refuse_element(kind: ActionKind, problem: str) -> NoReturn:
    raise ActionError("malformed_action", _teach(kind, problem))


def _teach(kind: ActionKind, problem: str) -> str:
    return f"{kind.value}: {problem}. Write it like this:\n{USAGE[kind]}"
