"""Medals: inclusive lines, a median that must be beaten, boards that mean nothing."""

import dataclasses

import pytest

from mlagent_jax.env.standing import standing
from mlagent_jax.types import HumanScores
from tests.samples import make_task

HUMAN = HumanScores(
    gold=0.9,
    silver=0.8,
    bronze=0.7,
    median=0.5,
    num_teams=100,
    medals=True,
    medals_note="",
    provenance="made up",
)


@pytest.mark.parametrize(
    ("score", "medal", "above_median"),
    [
        (0.95, "gold", True),
        (0.9, "gold", True),
        (0.8, "silver", True),
        (0.79, "bronze", True),
        (0.6, None, True),
        (0.5, None, False),
    ],
)
def test_medals_are_reached_and_the_median_is_beaten(score, medal, above_median):
    task = dataclasses.replace(make_task(), direction="max", human=HUMAN)
    expected = {"medal": medal, "above_median": above_median}
    assert standing(task, score) == expected
    flipped = dataclasses.replace(
        HUMAN, gold=-0.9, silver=-0.8, bronze=-0.7, median=-0.5
    )
    task = dataclasses.replace(task, direction="min", human=flipped)
    assert standing(task, -score) == expected


@pytest.mark.parametrize(
    ("score", "medal", "above_median"),
    [
        (2.2e-16, "gold", True),  # perfect probabilities
        (4e-6, "gold", True),
        (6e-6, "silver", True),
        (0.499996, "bronze", False),  # 0.50000 on a board: a tie with the median
        (0.499994, "bronze", True),
    ],
)
def test_standing_is_decided_at_the_decimals_of_a_board(score, medal, above_median):
    human = dataclasses.replace(HUMAN, gold=0.0, silver=0.1, bronze=0.6, median=0.5)
    task = dataclasses.replace(make_task(), direction="min", human=human)
    assert standing(task, score) == {"medal": medal, "above_median": above_median}


def test_boards_that_mean_nothing_give_no_medal_and_say_why():
    human = dataclasses.replace(HUMAN, medals=False, medals_note="an easier split")
    task = dataclasses.replace(make_task(), direction="max", human=human)
    assert standing(task, 1.0) == {
        "medal": None,
        "above_median": True,
        "note": "an easier split",
    }
    assert standing(dataclasses.replace(task, human=None), 1.0) == {}
