"""Ideas that a language model writes: asked for in parts, de-duplicated, resumable.

Every part is written down when it arrives. A collection that was stopped reads it back
instead of asking (and paying) again, and so ends with the same pool.
"""

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from mlagent_jax.config import IdeasConfig
from mlagent_jax.data.jsonl import append_line, heal, read_lines
from mlagent_jax.errors import PolicyError
from mlagent_jax.policy.base import Policy, Reply, Request
from mlagent_jax.types import Message, Task

REPLIES_FILE: Final = "idea_replies.jsonl"
_SYSTEM: Final = (
    "You are an experienced machine-learning engineer. You propose ideas that a "
    "colleague will try on a training script, one at a time."
)
_MIN_IDEA_CHARS: Final = 8
_MAX_IDEA_CHARS: Final = 400
_SHOWN_IDEAS: Final = 60
_LIST_ITEM: Final = re.compile(r"^\s*(?:[-*•]|\d{1,3}[.):])\s+(.+)$")
_STRING: Final = re.compile(r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])*"')
_POLL_S: Final = 0.01


def write_ideas(
    policy: Policy,
    task: Task,
    *,
    num_ideas: int,
    cfg: IdeasConfig,
    folder: Path,
    seed: int,
    stop_reason: Callable[[], str],
) -> tuple[str, ...]:
    """Returns `num_ideas` different ideas for a task, in the order they were written.

    Args:
      policy: who writes; must be idle.
      task: what they are for.
      num_ideas: size of the pool.
      cfg: how many at once, and how often to ask.
      folder: gets or holds idea_replies.jsonl.
      seed: of the requests.
      stop_reason: asked before each request; a text ends the work.

    Raises:
      PolicyError: there is a reason to stop, a request failed, or the model repeats
        itself; what was written so far is kept.
      DataError: the file of earlier replies is damaged.
    """
    path = folder / REPLIES_FILE
    heal(path)
    replies = [line["text"] for line, _ in read_lines(path) if line["task"] == task.id]
    ideas: dict[str, str] = {}
    number = 0
    while True:
        while number < len(replies) and len(ideas) < num_ideas:
            for idea in parse_ideas(replies[number]):
                ideas.setdefault(_fold(idea), idea)
            number += 1
        if len(ideas) >= num_ideas:
            return tuple(ideas.values())[:num_ideas]
        if number >= cfg.max_requests:
            raise PolicyError(
                f"task {task.id}: {number} requests gave {len(ideas)} different ideas, "
                f"but {num_ideas} are wanted; raise collect.ideas.max_requests or "
                "lower collect.ideas_per_task"
            )
        if reason := stop_reason():
            raise PolicyError(
                f"task {task.id}: stopped with {len(ideas)} of {num_ideas} ideas: "
                f"{reason}. They are kept; change that and run the same command again"
            )
        request = Request(
            id=f"ideas/{task.id}/{number}",
            messages=idea_prompt(task, cfg.ideas_a_request, tuple(ideas.values())),
            seed=seed + number,
            task_id=task.id,
        )
        reply = _ask(policy, request)
        append_line(path, {"task": task.id, "text": reply.text})
        replies.append(reply.text)


def idea_prompt(
    task: Task, num_ideas: int, known: Sequence[str]
) -> tuple[Message, ...]:
    """Returns the chat that asks for ideas which are not among `known`."""
    arrow = "higher" if task.direction == "max" else "lower"
    parts = [
        f"Task: {task.description}",
        f"Metric: {task.metric} ({arrow} is better).",
        f"The script {task.entry_script} as it is:\n{task.starter[task.entry_script]}",
    ]
    if known:
        listed = "\n".join(f"- {idea}" for idea in known[-_SHOWN_IDEAS:])
        parts.append(f"Ideas that are known already:\n{listed}")
    parts.append(
        f"Write {num_ideas} further ideas for a better score, as different from each "
        "other and from those above as possible: models, features, preprocessing, "
        "targets, validation, ensembles. One or two sentences each, concrete enough "
        "to act on. Answer with a JSON array of strings and nothing else."
    )
    return (
        Message(role="system", content=_SYSTEM),
        Message(role="user", content="\n\n".join(parts)),
    )


def parse_ideas(text: str) -> list[str]:
    """Returns the ideas of a reply: a JSON array of strings, else the items of a list.

    What is too short or too long to be an idea is left out; a reply that was cut keeps
    its whole items.
    """
    start, end = text.find("["), text.rfind("]")
    found: list[object] = []
    if 0 <= start < end:
        try:
            value = json.loads(text[start : end + 1])
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, list):
            found = value
    if not found:
        found = [_unquote(m[1]) for m in map(_LIST_ITEM.match, text.splitlines()) if m]
    if not found and start >= 0:
        # An array that was cut: its complete strings, one a line or not.
        found = [json.loads(item) for item in _STRING.findall(text)]
    ideas = [" ".join(item.split()) for item in found if isinstance(item, str)]
    return [i for i in ideas if _MIN_IDEA_CHARS <= len(i) <= _MAX_IDEA_CHARS]


def _unquote(item: str) -> str:
    return item.strip().removesuffix(",").strip('"')


def _fold(idea: str) -> str:
    """Returns what two wordings of one idea share."""
    return " ".join(re.findall(r"\w+", idea.casefold()))


def _ask(policy: Policy, request: Request) -> Reply:
    """Returns the reply to one request.

    Raises:
      PolicyError: there is none.
    """
    policy.submit(request)
    while True:
        for reply in policy.poll():
            if not reply.is_answer:
                raise PolicyError(f"{request.id}: {reply.error or reply.finish}")
            return reply
        time.sleep(_POLL_S)
