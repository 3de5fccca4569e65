"""Where a score on real data stands among people's: medals by MLE-bench's rule.

Reaching a medal's score earns it; the median must be beaten. Thresholds come from
Kaggle's test rows and are applied to our hidden test part, as MLE-bench does.
"""

from typing import Any

from mlagent_jax.types import Task


def standing(task: Task, test_score: float) -> dict[str, Any]:
    """Returns `medal` (None without one) and `above_median`; empty if not known.

    Args:
      task: with thresholds of people, which only real data has.
      test_score: on the hidden test part.
    """
    human = task.human
    if human is None:
        return {}
    is_above = task.sign * (test_score - human.median) > 0
    if not human.medals:
        return {"medal": None, "above_median": is_above, "note": human.medals_note}
    lines = {"gold": human.gold, "silver": human.silver, "bronze": human.bronze}
    reached = [m for m, line in lines.items() if task.sign * (test_score - line) >= 0]
    return {"medal": reached[0] if reached else None, "above_median": is_above}
