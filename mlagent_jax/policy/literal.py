"""The offline editor: follows instructions that name exact lines, to the letter.

Stands in for the editing model of profile `mlab` where there is none. It changes a
file only as `text.written_edits` describes; any other instruction it declines.
"""

from mlagent_jax.policy.base import Reply, Request
from mlagent_jax.text.actions import end_last_line
from mlagent_jax.text.editor import read_editor_prompt
from mlagent_jax.text.written_edits import read_instruction


class LiteralEditor:
    """Answers requests of `text.editor.editor_prompt` at the next poll."""

    def __init__(self, *, name: str = "literal") -> None:
        self.name = name
        self._waiting: list[Request] = []

    def submit(self, request: Request) -> None:
        """Queues a request."""
        self._waiting.append(request)

    def poll(self) -> list[Reply]:
        """Answers everything that waits."""
        waiting, self._waiting = self._waiting, []
        return [Reply(request_id=r.id, text=_answer(r), finish="stop") for r in waiting]

    def num_pending(self) -> int:
        """Returns how many requests wait."""
        return len(self._waiting)

    def close(self) -> None:
        """Has nothing to release."""


def _answer(request: Request) -> str:
    text, instruction = read_editor_prompt(request.messages)
    blocks = read_instruction(instruction)
    if not blocks:
        return "I follow only instructions that name the lines to replace."
    text = "\n" + end_last_line(text)
    for search, replace in blocks:
        needle = "\n" + search
        if text.count(needle) != 1:
            return f"These lines do not stand in the file exactly once:\n{search}"
        text = text.replace(needle, "\n" + replace)
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}python\n{text[1:]}{fence}"
