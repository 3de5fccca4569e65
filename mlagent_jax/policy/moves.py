"""Moves: named changes of a task's script that the offline expert knows.

A move says in a few words what it does, where in a script it applies and what
stands there afterwards. An idea is any text that names moves by their phrases, so
ideas can come from anywhere: the expert reads them back from the prompt alone.
"""

import dataclasses
import re
from collections.abc import Sequence

from mlagent_jax.types import Action, ActionKind

_WORD = re.compile(r"[a-z0-9_]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Move:
    """One change of a script.

    Attributes:
      id: "<dimension>/<number>", unique within a task.
      dimension: what it changes, e.g. "model"; moves of different dimensions
        change different lines and can be combined.
      say: short phrase, e.g. "use a random forest"; unique within a task.
      find: regular expression (multiline mode) of the text that is replaced.
      code: the new text, literally.
      path: the file that it changes.
    """

    id: str
    dimension: str
    say: str
    find: str
    code: str
    path: str = "train.py"


def apply_move(move: Move, script: str) -> Action | None:
    """Returns the edit that makes `move` in `script`, as one search/replace block.

    The search text is the matched lines as they are now, with neighbouring lines
    where those are needed to make it unique.

    Returns:
      None if `find` matches nothing or the move is made already.
    """
    match = re.compile(move.find, re.MULTILINE).search(script)
    if match is None or is_made(move, script):
        return None
    changed = script[: match.start()] + move.code + script[match.end() :]
    start = script.count("\n", 0, match.start())
    stop = script.count("\n", 0, max(match.start(), match.end() - 1)) + 1
    before, after = script.splitlines(), changed.splitlines()
    new_stop = stop + len(after) - len(before)
    while not _is_unique(before[start:stop], before):
        is_at_end = stop == len(before)
        if start == 0 and is_at_end:
            return None
        start, stop, new_stop = (
            (start - 1, stop, new_stop)
            if start > 0
            else (start, stop + 1, new_stop + 1)
        )
    search, replace = before[start:stop], after[start:new_stop]
    if search == replace:
        return None
    block = ("\n".join(search) + "\n", "".join(f"{line}\n" for line in replace))
    return Action(kind=ActionKind.EDIT, path=move.path, blocks=(block,))


def is_made(move: Move, script: str) -> bool:
    """Returns whether the lines of the move's code stand in `script`."""
    code = move.code.strip("\n")
    return bool(code) and f"\n{code}\n" in f"\n{script}\n"


def find_moves(text: str, moves: Sequence[Move]) -> list[Move]:
    """Returns the moves that an idea names, in the order in which it names them.

    A move is named by its phrase; where a longer phrase contains a shorter one, only
    the longer counts. An idea that contains no phrase names the moves all of whose
    words it contains, so that freely written ideas work too.
    """
    rest = _normalize(text)
    found: list[tuple[int, Move]] = []
    for move in sorted(moves, key=lambda m: (-len(m.say), m.id)):
        phrase = _normalize(move.say)
        position = rest.find(phrase)
        if position >= 0:
            found.append((position, move))
            blank = "\0" * (len(phrase) - 2)
            rest = rest[: position + 1] + blank + rest[position + len(phrase) - 1 :]
    if found:
        return [move for _, move in sorted(found, key=lambda pair: pair[0])]
    words = set(rest.split())
    return [move for move in moves if set(_normalize(move.say).split()) <= words]


def _normalize(text: str) -> str:
    """Returns the lower-case words of `text`, each between single spaces."""
    return f" {' '.join(_WORD.findall(text.lower()))} "


def _is_unique(part: Sequence[str], lines: Sequence[str]) -> bool:
    width = len(part)
    starts = range(len(lines) - width + 1)
    return sum(list(lines[i : i + width]) == list(part) for i in starts) == 1
