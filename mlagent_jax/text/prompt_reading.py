"""Reading a prompt of `text.prompt` back: its ideas, its past steps, its script.

The scripted expert knows of a state what its prompt says and nothing else; quoting
practice looks for the script. Both read the chat itself.
"""

import dataclasses
import re
from collections.abc import Sequence

from mlagent_jax.errors import ActionError
from mlagent_jax.text.actions import parse_reply
from mlagent_jax.text.prompt import LOG_HEADING
from mlagent_jax.text.wording import FAILURES, IDEAS_HEADING, action_gist
from mlagent_jax.types import Message

_VERDICTS = frozenset({"better", "worse", "same", *FAILURES.values()})
_LOG_LINE = re.compile(r"\d+ (.*)")
_TURN_VERDICT = re.compile(r"(?:Step \d+: )?(.*)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptStep:
    """A past step as far as a prompt tells of it.

    Attributes:
      gist: see `action_gist`.
      verdict: see `verdict`.
    """

    gist: str
    verdict: str


def read_ideas(messages: Sequence[Message]) -> tuple[str, ...]:
    """Returns the ideas that a chat of `render_state` puts to its reader."""
    lines = _first_turn_lines(messages)
    if IDEAS_HEADING not in lines:
        return ()
    ideas: list[str] = []
    for line in lines[lines.index(IDEAS_HEADING) + 1 :]:
        if not line.startswith("- "):
            break
        ideas.append(line[2:])
    return tuple(ideas)


def read_steps(messages: Sequence[Message]) -> tuple[PromptStep, ...]:
    """Returns the past steps that a chat of `render_state` tells of, oldest first."""
    steps: list[PromptStep] = []
    lines = _first_turn_lines(messages)
    if LOG_HEADING in lines:
        for line in lines[lines.index(LOG_HEADING) + 1 :]:
            match = _LOG_LINE.fullmatch(line)
            if match is None:
                break
            steps.append(_read_log_line(match[1]))
    for reply, feedback in zip(messages[2::2], messages[3::2], strict=True):
        try:
            action = parse_reply(reply.content, max_chars=len(reply.content))
        except ActionError:
            action = None
        match = _TURN_VERDICT.match(feedback.content)
        word = match[1] if match and match[1] in _VERDICTS else ""
        steps.append(PromptStep(gist=action_gist(action), verdict=word))
    return tuple(steps)


def split_script(first_turn: str) -> tuple[str, str, str]:
    """Returns (text up to the script, script, text behind it) of a first user turn.

    The closing fence is the last line but one, and the script holds none as long.
    """
    lines = first_turn.split("\n")
    fence = lines[-2]
    opening = len(lines) - 3
    while not lines[opening].startswith(fence):
        opening -= 1
    before, script, after = lines[: opening + 1], lines[opening + 1 : -2], lines[-2:]
    return (
        "\n".join(before) + "\n",
        "".join(f"{line}\n" for line in script),
        "\n".join(after),
    )


def _first_turn_lines(messages: Sequence[Message]) -> list[str]:
    """Returns the lines of the first user turn in front of the script's fence."""
    before, _, _ = split_script(messages[1].content)
    return before.split("\n")[:-2]


def _read_log_line(text: str) -> PromptStep:
    gist, _, tail = text.rpartition(": ")
    word = tail.partition(", ")[0]
    if gist and word in _VERDICTS:
        return PromptStep(gist=gist, verdict=word)
    return PromptStep(gist=gist if gist and " -> " in tail else text, verdict="")
