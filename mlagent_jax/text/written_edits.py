"""Edits in words that can be followed to the letter, and back.

The scripted expert knows exact edits, but in profile `mlab` an edit is an instruction
to an editor. `write_instruction` puts a search/replace edit into words that a model
understands and `read_instruction` reads exactly, which is what lets the offline
editor (`policy.literal`) stand in for an editing model.
"""

import re

from mlagent_jax.text.actions import end_last_line
from mlagent_jax.text.wording import changed_line, code_gist

_FENCE = "```"
_BLOCK = re.compile(
    r"Replace the lines\n(`{3,})\n(.*?)\1\nby(?: the lines\n\1\n(.*?)\1| nothing)$",
    re.DOTALL | re.MULTILINE,
)


def write_instruction(blocks: tuple[tuple[str, str], ...], reason: str = "") -> str:
    """Returns words that ask for the (search, replace) `blocks`, in order.

    Args:
      blocks: whole lines to find and what stands there instead.
      reason: said first; "" for nothing.
    """
    parts = [reason] if reason else []
    for search, replace in blocks:
        fence = _FENCE
        while fence in search or fence in replace:
            fence += "`"
        before = f"Replace the lines\n{fence}\n{end_last_line(search)}{fence}\n"
        after = f"by the lines\n{fence}\n{end_last_line(replace)}{fence}"
        parts.append(before + (after if replace else "by nothing"))
    return "\n".join(parts)


def read_instruction(text: str) -> tuple[tuple[str, str], ...]:
    """Returns the (search, replace) blocks of an instruction, () if it has none."""
    return tuple((match[2], match[3] or "") for match in _BLOCK.finditer(text))


def edit_gist(instruction: str) -> str:
    """Returns the few words by which a log names an instruction."""
    blocks = read_instruction(instruction)
    return code_gist(changed_line(blocks) if blocks else instruction)
