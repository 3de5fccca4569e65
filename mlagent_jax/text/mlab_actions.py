"""The action syntax of profile `mlab`: MLAgentBench's eight actions and six fields.

A reply has six labelled fields in a fixed order, each label at the start of a line;
the last two name one action and give its arguments as a JSON object. Unlike
MLAgentBench, whose parser takes the last of several actions, rescues broken JSON and
carries out actions that it never mentioned, a reply counts only as a whole: every
label once, the keys of the input exactly those of the action, and no other action
than the eight. Everything from a line "Observation:" on is the model's own invention
and is cut off, as the stop word of MLAgentBench does.

Whether a path exists is the business of `env.workspace`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn, cast

from mlagent_jax.errors import ActionError
from mlagent_jax.text.actions import replace_surrogates
from mlagent_jax.types import Action, ActionKind

FIELDS = (
    "Reflection",
    "Research Plan and Status",
    "Fact Check",
    "Thought",
    "Action",
    "Action Input",
)
"""The labels of a reply, in their order."""

MAX_INSPECTED_LINES = 100
MAX_OBSERVATION_CHARS = 5_000


class Tool(NamedTuple):
    """One of the eight actions.

    Attributes:
      kind: what it is to the environment.
      arguments: the keys of its input -> what their values mean.
      purpose: what it does, for the prompt.
      returns: what the agent sees, for the prompt.
    """

    kind: ActionKind
    arguments: Mapping[str, str]
    purpose: str
    returns: str


TOOLS: Mapping[str, Tool] = MappingProxyType(
    {
        "List Files": Tool(
            ActionKind.LIST,
            {"dir_path": 'a folder of the workspace, "." for the whole'},
            "Shows what a folder holds.",
            "the names of its files and folders",
        ),
        "Copy File": Tool(
            ActionKind.COPY,
            {"source": "the file to copy", "destination": "the file to write"},
            "Copies a file.",
            "whether it was copied",
        ),
        "Undo Edit Script": Tool(
            ActionKind.UNDO,
            {"script_name": "the file whose newest edit is taken back"},
            "Takes back the newest edit that wrote this file.",
            "the file as it is then",
        ),
        "Execute Script": Tool(
            ActionKind.RUN,
            {"script_name": "a Python file of the workspace"},
            "Runs a script and scores the submission that it writes.",
            "the score, or the error that ended it",
        ),
        "Final Answer": Tool(
            ActionKind.SUBMIT,
            {"final_answer": "what was done, in words"},
            "Ends the work; the last scored submission counts.",
            "nothing",
        ),
        "Understand File": Tool(
            ActionKind.UNDERSTAND,
            {
                "file_name": "the file to read",
                "things_to_look_for": "what to find out, in words",
            },
            "Shows a whole file; the middle of a long one is left out.",
            "the text of the file",
        ),
        "Inspect Script Lines": Tool(
            ActionKind.INSPECT,
            {
                "script_name": "the file to read",
                "start_line_number": "the first line, from 1",
                "end_line_number": "the last line, at most "
                f"{MAX_INSPECTED_LINES - 1} further on",
            },
            "Shows some lines of a file as they are.",
            "the lines, and how many the file has",
        ),
        "Edit Script (AI)": Tool(
            ActionKind.ASK_EDIT,
            {
                "script_name": "the file to start from",
                "edit_instruction": "what to change, in words, line by line "
                "where it matters",
                "save_name": "the file to write, usually the same",
            },
            "Has an editor change a script as told. A change of the entry script is "
            "run at once.",
            "the change, and the score or the error of the run",
        ),
    }
)
"""Name -> action, the eight that MLAgentBench shows to its agent."""

_NAMES = ", ".join(TOOLS)
_NAME_OF = {tool.kind: name for name, tool in TOOLS.items()}
_LABEL = re.compile(rf"^({'|'.join(map(re.escape, sorted(FIELDS, reverse=True)))}):")
_OBSERVATION = re.compile(r"^Observation:", re.MULTILINE)
_LINE_NUMBER = re.compile(r"[0-9]{1,9}")
_MAX_SHOWN_CHARS = 60


def parse_reply(reply: str, *, max_chars: int) -> Action:
    """Returns the one action that `reply` asks for.

    Args:
      reply: what the policy wrote; any string.
      max_chars: characters allowed.

    Raises:
      ActionError: with reason `empty_reply`, `reply_too_long`, `no_action`,
        `several_actions`, `malformed_action` (labels), `unknown_action` or
        `bad_input` (JSON or its keys); its text tells the agent what to write.
    """
    if len(reply) > max_chars:
        raise ActionError(
            "reply_too_long",
            f"The reply has {len(reply)} characters; at most {max_chars} are allowed. "
            "Write a shorter one.",
        )
    if not reply.strip():
        raise ActionError("empty_reply", f"The reply is empty. {_how_to_reply()}")
    text = replace_surrogates(reply).replace("\r\n", "\n")
    invented = _OBSERVATION.search(text)
    fields = _read_fields(text[: invented.start()] if invented else text)
    name = fields["Action"]
    tool = TOOLS.get(name)
    if tool is None:
        raise ActionError(
            "unknown_action", f"There is no action {_shown(name)!r}. Actions: {_NAMES}."
        )
    values = _read_input(name, tool, fields["Action Input"])
    thought = "\n".join(f"{field}: {fields[field]}" for field in FIELDS[:4])
    return _make_action(name, tool.kind, values, thought)


def render_action(action: Action) -> str:
    """Returns the reply that asks for `action`.

    Its thought becomes the field Thought, unless it holds all four fields of words
    already, as `parse_reply` makes it.

    Raises:
      ValueError: the eight actions cannot express it.
    """
    name = _NAME_OF.get(action.kind)
    if name is None:
        raise ValueError(f"{action.kind}: is no action of profile `mlab`")
    words = action.thought
    if not words.startswith(f"{FIELDS[0]}:"):
        thought = " ".join(words.split())
        words = "\n".join(
            [*(f"{field}: -" for field in FIELDS[:3]), f"Thought: {thought or '-'}"]
        )
    values = json.dumps(_input_of(action), indent=1)
    text = f"{words}\nAction: {name}\nAction Input: {values}"
    try:
        parsed = parse_reply(text, max_chars=len(text))
    except ActionError as error:
        raise ValueError(f"{name}: cannot be written as a reply: {error}") from error
    if _input_of(parsed) != _input_of(action):
        raise ValueError(f"{name}: would be read back as {parsed}, not {action}")
    return text


def _read_fields(text: str) -> dict[str, str]:
    """Returns the six fields of a reply; text before the first is left out.

    Raises:
      ActionError: a label is missing, comes twice or out of order.
    """
    found: list[tuple[str, list[str]]] = []
    for line in text.split("\n"):
        match = _LABEL.match(line)
        if match:
            found.append((match[1], [line[match.end() :]]))
        elif found:
            found[-1][1].append(line)
    labels = [label for label, _ in found]
    if "Action" not in labels:
        raise ActionError("no_action", f"The reply names no action. {_how_to_reply()}")
    if labels.count("Action") > 1 or labels.count("Action Input") > 1:
        raise ActionError(
            "several_actions",
            "The reply holds more than one action; none was carried out. Write exactly "
            "one.",
        )
    if tuple(labels) != FIELDS:
        raise ActionError(
            "malformed_action",
            f"The fields of the reply are {', '.join(labels)}. {_how_to_reply()}",
        )
    return {label: "\n".join(lines).strip() for label, lines in found}


def _read_input(name: str, tool: Tool, text: str) -> dict[str, str]:
    """Returns the arguments of an action.

    Raises:
      ActionError: the text is no JSON object with exactly the keys of the action,
        each with a string (or a number of a line).
    """
    try:
        pairs = json.loads(
            text, object_pairs_hook=_Pairs, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        problem = f"it is no JSON ({error})"
        if isinstance(error, RecursionError):
            problem = "it is nested too deeply"
        _refuse_input(name, tool, problem)
    if not isinstance(pairs, _Pairs):
        _refuse_input(name, tool, "it is no JSON object")
    items = cast(Sequence[tuple[str, Any]], pairs)
    keys = [replace_surrogates(key) for key, _ in items]
    for problem, names in [
        ("the keys {} are given twice", {k for k in keys if keys.count(k) > 1}),
        ("the keys {} are unknown", set(keys) - set(tool.arguments)),
        ("the keys {} are missing", set(tool.arguments) - set(keys)),
    ]:
        if names:
            shown = ", ".join(sorted(_shown(key) for key in names))
            _refuse_input(name, tool, problem.format(shown))
    values: dict[str, str] = {}
    for key, value in items:
        if key.endswith("_line_number") and type(value) is int:
            value = str(value)
        if not isinstance(value, str):
            _refuse_input(name, tool, f"the value of {key} is no string")
        values[key] = replace_surrogates(value)
    return values


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its keys as they were written, duplicates too."""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _make_action(
    name: str, kind: ActionKind, values: Mapping[str, str], thought: str
) -> Action:
    first, last = (
        _line_number(name, key, values) if key in values else None
        for key in ("start_line_number", "end_line_number")
    )
    paths = ("dir_path", "source", "script_name", "file_name")
    targets = ("destination", "save_name")
    words = ("edit_instruction", "things_to_look_for", "final_answer")
    return Action(
        kind=kind,
        path=next((values[k] for k in paths if k in values), None),
        target=next((values[k] for k in targets if k in values), None),
        content=next((values[k] for k in words if k in values), ""),
        first_line=first,
        last_line=last,
        thought=thought,
    )


def _line_number(name: str, key: str, values: Mapping[str, str]) -> int:
    text = values[key].strip()
    if not _LINE_NUMBER.fullmatch(text):
        problem = f"{key} = {_shown(text)!r} is no number of a line"
        _refuse_input(name, TOOLS[name], problem)
    return int(text)


def _input_of(action: Action) -> dict[str, str]:
    """Returns the JSON object that asks for `action`."""
    path, target = action.path or "", action.target or ""
    match action.kind:
        case ActionKind.LIST:
            return {"dir_path": path or "."}
        case ActionKind.COPY:
            return {"source": path, "destination": target}
        case ActionKind.SUBMIT:
            return {"final_answer": action.content}
        case ActionKind.UNDERSTAND:
            return {"file_name": path, "things_to_look_for": action.content}
        case ActionKind.INSPECT:
            return {
                "script_name": path,
                "start_line_number": str(action.first_line),
                "end_line_number": str(action.last_line),
            }
        case ActionKind.ASK_EDIT:
            return {
                "script_name": path,
                "edit_instruction": action.content,
                "save_name": target,
            }
        case _:
            return {"script_name": path}


def usage(name: str) -> str:
    """Returns the written form of an action's input."""
    return json.dumps({k: f"[{v}]" for k, v in TOOLS[name].arguments.items()}, indent=1)


def _how_to_reply() -> str:
    labels = ", ".join(f"{label}:" for label in FIELDS)
    return (
        f"Write the six fields {labels} in this order, each once and at the start of a "
        f"line. Actions: {_NAMES}."
    )


def _refuse_input(name: str, tool: Tool, problem: str) -> NoReturn:
    keys = ", ".join(tool.arguments)
    raise ActionError(
        "bad_input",
        f"The input of {name} cannot be used: {problem}. It takes one JSON object "
        f"with exactly the keys {keys}, each with a string:\n{usage(name)}",
    )


def _shown(text: str) -> str:
    """Returns at most `_MAX_SHOWN_CHARS` printable characters of `text`."""
    head = "".join(c if c.isprintable() else "?" for c in text[:_MAX_SHOWN_CHARS])
    return head if len(text) <= _MAX_SHOWN_CHARS else f"{head}..."
