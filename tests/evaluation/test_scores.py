"""Statistics against hand-computed values and known distributions."""

import dataclasses

import numpy as np
import pytest

from mlagent_jax.evaluation import scores
from mlagent_jax.evaluation.records import (
    EvalRecord,
    FreshStepRecord,
    relative_gain_percent,
)
from mlagent_jax.types import Outcome
from tests.samples import make_step, make_task, make_trajectory


def fresh(state, reward, sample=0):
    return FreshStepRecord(
        state_id=state,
        task_id="toy",
        sample=sample,
        outcome=Outcome.SCORED,
        reward=reward,
    )


def record(gain=0.0, final=0.5, steps=(), rewards=(), name="toy/p/000"):
    return EvalRecord(
        trajectory=make_trajectory(name, steps),
        split="held_in",
        start_score=0.5,
        final_score=final,
        selected_score=final,
        relative_gain_percent=gain,
        selected_gain_percent=gain,
        step_rewards=tuple(rewards),
    )


@pytest.mark.parametrize(
    ("score", "start", "sign", "gain"),
    [
        (0.6, 0.5, 1.0, 20.0),
        (0.4, 0.5, 1.0, -20.0),
        (0.4, 0.5, -1.0, 20.0),
        (0.5, 0.5, -1.0, 0.0),
        (-0.5, -1.0, 1.0, 50.0),  # a negative correlation that got better
        (0.0, 0.0, 1.0, 0.0),
    ],
)
def test_relative_gain_is_signed_and_relative_to_the_start(score, start, sign, gain):
    assert relative_gain_percent(score, start, sign) == pytest.approx(gain)


def test_the_mean_over_tasks_weighs_tasks_equally_whatever_their_trajectories():
    estimate = scores.stratified_mean({"a": [1.0, 3.0], "b": [10.0]})
    assert estimate.mean == pytest.approx((2.0 + 10.0) / 2)
    assert estimate.num == 3


def test_the_interval_covers_the_true_mean_about_19_times_in_20():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        values = {"a": rng.normal(1.0, 1.0, 40), "b": rng.normal(3.0, 2.0, 40)}
        low, high = scores.stratified_mean(values).ci95
        hits += low <= 2.0 <= high
    assert 180 <= hits <= 199


def test_a_group_without_values_is_refused():
    with pytest.raises(ValueError, match="every group needs values"):
        scores.stratified_mean({"a": []})


def test_the_paired_difference_uses_the_states_both_answered():
    ours = [fresh("s1", 1.0), fresh("s1", 0.5, 1), fresh("s2", 0.25), fresh("s3", 9.0)]
    theirs = [fresh("s1", 0.25), fresh("s2", 0.75)]
    estimate = scores.paired_difference(ours, theirs)
    assert estimate.num == 2
    assert estimate.mean == pytest.approx((0.5 - 0.5) / 2)


def test_states_that_nobody_shares_are_refused():
    with pytest.raises(ValueError, match="no state in common"):
        scores.paired_difference([fresh("a", 1.0)], [fresh("b", 1.0)])


@pytest.mark.parametrize(("direction", "best"), [("max", 0.9), ("min", 0.4)])
def test_the_best_of_k_follows_the_direction(direction, best):
    task = make_task(direction=direction)
    records = [record(final=0.4), record(final=0.9), record(final=0.5)]
    score = scores.task_score(records, task)
    assert score.best == best
    assert score.avg == pytest.approx(0.6)


def test_the_valid_action_rate_counts_steps_not_trajectories():
    bad = dataclasses.replace(make_step("nothing"), outcome=Outcome.INVALID_ACTION)
    good = make_step("<submit/>")
    records = [record(steps=(bad, good, good)), record(steps=(good,))]
    assert scores.valid_action_rate(records) == pytest.approx(3 / 4)


def test_fractional_step_rewards_are_averaged_as_they_are():
    records = [record(rewards=(0.7, 0.1)), record(rewards=(0.4,))]
    assert scores.mean_step_reward(records) == pytest.approx(0.4)
