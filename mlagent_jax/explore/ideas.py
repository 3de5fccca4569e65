"""Idea pools: texts that say what to try on a task (paper A.3).

The offline source composes them from the task's `moves.toml`: one to three moves of
different dimensions, said in one sentence. An idea is only a text; the expert finds
the moves in it again (`policy.moves.find_moves`), so ideas that a language model
wrote can take the place of these.
"""

import dataclasses
import itertools
import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from mlagent_jax.env.task import ENTRY_SCRIPT
from mlagent_jax.errors import TaskError
from mlagent_jax.policy.moves import Move, find_moves

MOVES_FILE: Final = "moves.toml"


_MAX_SAY_CHARS: Final = 120
# Share of an idea pool by number of moves; what a size cannot fill, others do.
_SHARES: Final = {1: 0.25, 2: 0.45, 3: 0.30}
_TEMPLATES: Final[Mapping[int, tuple[str, ...]]] = {
    1: (
        "{0}.",
        "Try this first: {0}.",
        "A simple change may help: {0}.",
        "See whether it pays to {0}.",
    ),
    2: (
        "{0}, and {1}.",
        "First {0}; then {1}.",
        "Combine two changes: {0}, and {1}.",
        "After you {0}, {1} as well.",
    ),
    3: (
        "{0}, {1}, and {2}.",
        "Step by step: {0}; {1}; {2}.",
        "Combine three changes: {0}, {1}, and {2}.",
        "First {0}, then {1}; at last {2}.",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Idea:
    """Something to try on a task.

    Attributes:
      text: one or two sentences for the prompt.
      moves: ids of the moves that the text names, in its order; empty if the source
        of the idea does not know.
    """

    text: str
    moves: tuple[str, ...] = ()


def load_moves(
    task_root: str | Path, task_ids: Sequence[str]
) -> dict[str, tuple[Move, ...]]:
    """Returns the moves of each task, read from `<task_root>/<task>/moves.toml`.

    Raises:
      TaskError: a file is missing or breaks its contract (see `read_moves`).
    """
    root = Path(task_root)
    return {task_id: read_moves(root / task_id / MOVES_FILE) for task_id in task_ids}


def generate_ideas(moves: Sequence[Move], n: int, seed: int) -> tuple[Idea, ...]:
    """Returns `n` ideas, each naming another set of moves of different dimensions.

    Args:
      moves: what can be done on the task.
      n: size of the pool.
      seed: determines sets, order and wording.

    Raises:
      TaskError: the moves allow fewer than `n` sets.
    """
    rng = random.Random(seed)
    sets = {size: _shuffled_sets(moves, size, rng) for size in _SHARES}
    total = sum(map(len, sets.values()))
    if total < n:
        raise TaskError(
            f"{MOVES_FILE}: {len(moves)} moves allow only {total} ideas, but {n} are "
            "wanted; add moves or lower collect.ideas_per_task"
        )
    chosen = [
        s for size, share in _SHARES.items() for s in sets[size][: int(share * n)]
    ]
    rest = [s for size, share in _SHARES.items() for s in sets[size][int(share * n) :]]
    rng.shuffle(rest)
    chosen += rest[: n - len(chosen)]
    rng.shuffle(chosen)
    return tuple(_compose(chosen_moves, rng) for chosen_moves in chosen)


def read_moves(path: Path) -> tuple[Move, ...]:
    """Returns the moves of one file.

    The file is an array of tables for each dimension, `[[model]]`, each with `say`
    (a short imperative phrase that no other move has), `find` (a regular expression
    that matches one place of the starter script) and `code` (what stands there
    afterwards).

    Raises:
      TaskError: the file is missing or breaks that contract; all problems are
        listed.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        starter = (path.parent / ENTRY_SCRIPT).read_text(encoding="utf-8")
    except OSError as error:
        raise TaskError(
            f"{error.filename}: {error.strerror}; the scripted expert needs it"
        ) from error
    except ValueError as error:  # No TOML, or not UTF-8.
        raise TaskError(f"{path}: {error}") from error
    moves: list[Move] = []
    problems: list[str] = []
    for dimension, entries in table.items():
        if not isinstance(entries, list):
            problems.append(f"{dimension}: expected tables [[{dimension}]]")
            continue
        for number, entry in enumerate(cast(list[Any], entries), start=1):
            move_id = f"{dimension}/{number}"
            found = _entry_problems(entry, starter)
            problems += [f"[[{dimension}]] number {number}: {p}" for p in found]
            if not found:
                moves.append(Move(id=move_id, dimension=dimension, **entry))
    problems += _phrase_problems(moves)
    if not table:
        problems.append("no moves")
    if problems:
        raise TaskError(f"{path}: " + f"\n{path}: ".join(problems))
    return tuple(moves)


def _entry_problems(entry: object, starter: str) -> list[str]:
    if not isinstance(entry, dict):
        return [f"{entry!r} is no table"]
    values = cast(dict[str, object], entry)
    expected = {"say", "find", "code"}
    texts = {k: v for k, v in values.items() if isinstance(v, str) and v.strip()}
    if set(values) != expected or set(texts) != expected:
        return [f"expected the texts say, find, code, got {values!r:.120}"]
    problems: list[str] = []
    say = texts["say"]
    if len(say) > _MAX_SAY_CHARS or "\n" in say or not say[0].isalnum():
        problems.append(f"say = {say!r:.60}: expected one short line")
    try:
        matches = list(re.finditer(texts["find"], starter, re.MULTILINE))
    except re.error as error:
        return [*problems, f"find = {texts['find']!r}: {error}"]
    if len(matches) != 1 or not matches[0][0]:
        problems.append(
            f"find = {texts['find']!r}: matches {len(matches)} places of "
            f"{ENTRY_SCRIPT}, expected one that is not empty"
        )
    return problems


def _phrase_problems(moves: Sequence[Move]) -> list[str]:
    """Returns which phrases do not lead back to their move."""
    return [
        f"{move.id}: say = {move.say!r} is read as {[m.id for m in found]}"
        for move in moves
        if (found := find_moves(move.say, moves)) != [move]
    ]


def _shuffled_sets(
    moves: Sequence[Move], size: int, rng: random.Random
) -> list[tuple[Move, ...]]:
    """Returns all sets of `size` moves of different dimensions, in random order."""
    of_dimension: dict[str, list[Move]] = {}
    for move in moves:
        of_dimension.setdefault(move.dimension, []).append(move)
    sets = [
        combination
        for dimensions in itertools.combinations(of_dimension.values(), size)
        for combination in itertools.product(*dimensions)
    ]
    rng.shuffle(sets)
    return sets


def _compose(moves: Sequence[Move], rng: random.Random) -> Idea:
    ordered = rng.sample(moves, len(moves))
    template = rng.choice(_TEMPLATES[len(ordered)])
    text = template.format(*(move.say for move in ordered))
    return Idea(
        text=f"{text[:1].upper()}{text[1:]}", moves=tuple(move.id for move in ordered)
    )
