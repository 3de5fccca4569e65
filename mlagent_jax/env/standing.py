"""Where a score on real data stands among people's: medals by MLE-bench's rule.

Reaching a medal's score earns it; the median must be beaten. Both are decided at the
five decimals that Kaggle's boards show: perfect rows have a log loss of 2e-16 and tie
with a gold line of 0.00000. Thresholds come from Kaggle's test rows and are applied to
our hidden test part, as MLE-bench does.
"""

from typing import Any

from mlagent_jax.types import Task

_BOARD_DECIMALS = 5


def standing(task: Task, test_score: float) -> dict[str, Any]:
    """Returns `medal` (None without one) and `above_median`; empty if not known.

    Args:
      task: with thresholds of people, which only real data has.
      test_score: on the hidden test part.
    """
    human = task.human
    if human is None:
        return {}
    is_above = _lead(task, test_score, human.median) > 0
    if not human.medals:
        return {"medal": None, "above_median": is_above, "note": human.medals_note}
    lines = {"gold": human.gold, "silver": human.silver, "bronze": human.bronze}
    reached = [m for m, line in lines.items() if _lead(task, test_score, line) >= 0]
    return {"medal": reached[0] if reached else None, "above_median": is_above}


def _lead(task: Task, score: float, line: float) -> float:
    """Returns by how much `score` is better than `line` on a board."""
    return task.sign * (round(score, _BOARD_DECIMALS) - round(line, _BOARD_DECIMALS))
