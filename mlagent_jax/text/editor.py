"""What the editor of "Edit Script (AI)" reads and how its answer becomes a file.

The editor is any policy. It is asked for the whole edited file in a python fence, as
in MLAgentBench; an answer without a closed fence is refused, never saved as it is.
"""

import re

from mlagent_jax.errors import ActionError
from mlagent_jax.text.actions import end_last_line, replace_surrogates
from mlagent_jax.types import Message

_SYSTEM = """\
You edit Python files. You are given a file and an instruction. Answer with the whole \
file after the edit in one fence that starts with ```python, and change nothing that \
the instruction does not ask for."""
_FENCED_FILE = re.compile(
    r"^(`{3,})(?:python|py)[ \t]*\n(.*?)^\1[ \t]*$", re.DOTALL | re.MULTILINE
)
_PROMPT = re.compile(
    r"The file .*?:\n(`{3,})python\n(.*?)\1\n\nInstruction:\n(.*)", re.DOTALL
)


def editor_prompt(path: str, text: str, instruction: str) -> tuple[Message, ...]:
    """Returns the chat that asks for an edit.

    Args:
      path: name of the file.
      text: the file as it is; "" for a new one.
      instruction: what to change, in the words of the agent.
    """
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    content = (
        f"The file {path}:\n{fence}python\n{end_last_line(text)}{fence}\n\n"
        f"Instruction:\n{instruction}"
    )
    return (
        Message(role="system", content=_SYSTEM),
        Message(role="user", content=content),
    )


def read_editor_prompt(messages: tuple[Message, ...]) -> tuple[str, str]:
    """Returns the file's text and the instruction of a chat of `editor_prompt`.

    Raises:
      ValueError: the chat is none.
    """
    match = _PROMPT.fullmatch(messages[-1].content)
    if match is None:
        raise ValueError("not a prompt of text.editor.editor_prompt")
    return match[2], match[3]


def read_edited_file(reply: str) -> str:
    """Returns the file in an editor's reply.

    Raises:
      ActionError: `editor_gave_no_file`: the reply has no closed python fence.
    """
    text = replace_surrogates(reply).replace("\r\n", "\n")
    match = _FENCED_FILE.search(text)
    if match is None:
        raise ActionError(
            "editor_gave_no_file",
            "The editor did not answer with a whole file, so nothing was changed. Say "
            "more exactly what to change, or ask for less at once.",
        )
    return end_last_line(match[2])
