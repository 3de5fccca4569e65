"""The reward table, case by case, and what holds for every reward."""

import dataclasses
import math
import random

import pytest

from mlagent_jax.config import RewardConfig
from mlagent_jax.env.reward import compute_reward, trajectory_rewards
from mlagent_jax.types import Action, ActionKind, ExecResult, Outcome
from tests.samples import (
    make_edit,
    make_state,
    make_step,
    make_task,
    make_trajectory,
)

V1, V2 = RewardConfig(preset="paper_v1"), RewardConfig(preset="paper_v2")
BOUNDED = RewardConfig(preset="bounded")
TASK = make_task(baseline=0.5, best=0.9)
EDIT = make_edit("a\n", "b\n")
RUN = Action(kind=ActionKind.RUN, path="train.py")
UNDO = Action(kind=ActionKind.UNDO)
READ = Action(kind=ActionKind.READ, path="train.py")


def reward_of(step, cfg, task=TASK, held=(), **kwargs):
    """Returns the reward of a step; `held` are the scores that can be undone to."""
    state = dataclasses.replace(
        make_state(score=step.score_before),
        previous_snapshots=tuple(("s", score) for score in held),
    )
    return compute_reward(state, step, task, cfg, **kwargs)


def total(step, cfg, task=TASK, held=()):
    return reward_of(step, cfg, task, held).total


def executed(step, wall_s):
    execution = ExecResult(
        outcome=Outcome.INFO,
        exit_code=0,
        signal=None,
        wall_s=wall_s,
        cpu_s=wall_s,
        max_rss_bytes=0,
        stdout="",
        stderr="",
        stdout_bytes=0,
        stderr_bytes=0,
    )
    return dataclasses.replace(step, execution=execution)


@pytest.mark.parametrize(
    ("action", "outcome", "v1", "v2", "bounded"),
    [
        ("nonsense", Outcome.INVALID_ACTION, 0, -1, -1),
        (EDIT, Outcome.INVALID_ACTION, 0, -1, -1),
        (UNDO, Outcome.INVALID_ACTION, 0, -1, -1),
        (EDIT, Outcome.SCRIPT_ERROR, 0, -1, -1),
        (RUN, Outcome.SCRIPT_ERROR, 0, -1, -1),
        (EDIT, Outcome.INVALID_SUBMISSION, 0, -1, -1),
        (RUN, Outcome.INVALID_SUBMISSION, 0, -1, -1),
        (EDIT, Outcome.TIMEOUT, 0.5, 0, 0),
        (EDIT, Outcome.OUT_OF_MEMORY, 0.5, 0, 0),
        (EDIT, Outcome.RESOURCE_LIMIT, 0.5, 0, 0),
        (RUN, Outcome.TIMEOUT, 0.5, 0, 0),
        (READ, Outcome.INFO, 0.5, 0, 0),
        (UNDO, Outcome.INFO, 0.5, 0, 0),
        (RUN, Outcome.SCORED, 0.5, 0, 0),
        (EDIT, Outcome.SCORED, 0.5, 0, 0),
    ],
)
def test_the_table(action, outcome, v1, v2, bounded):
    step = make_step(action, outcome=outcome)
    assert total(step, V1) == v1
    assert total(step, V2) == v2
    assert total(step, BOUNDED) == pytest.approx(bounded)


@pytest.mark.parametrize(
    ("gain_frac", "expected"), [(0.01, 0.731), (0.03, 0.953), (0.05, 0.993)]
)
def test_v1_saturates_as_in_the_paper(gain_frac, expected):
    step = make_step(EDIT, 0.5, 0.5 + gain_frac * 0.4)
    assert total(step, V1) == pytest.approx(expected, abs=5e-4)
    worse = make_step(EDIT, 0.5 + gain_frac * 0.4, 0.5)
    assert total(worse, V1) == pytest.approx(1 - expected, abs=5e-4)


def test_v2_is_the_part_of_the_headroom_and_has_no_bounds():
    assert total(make_step(EDIT, 0.6, 0.7), V2) == pytest.approx(0.25)
    assert total(make_step(EDIT, 0.9, 0.0), V2) == pytest.approx(-2.25)


def test_bounded_clips_and_charges_for_time():
    cfg = dataclasses.replace(BOUNDED, clip=0.5, floor=0.5, duration_weight=0.2)
    step = executed(make_step(EDIT, 0.5, 0.9), wall_s=5.0)
    reward = reward_of(step, cfg)
    assert reward.parts == {"metric": 0.5, "duration": pytest.approx(-0.05)}
    assert reward.total == pytest.approx(0.45)
    assert total(executed(make_step(EDIT, 0.9, 0.1), 99.0), cfg) == -0.7


def test_the_floor_is_all_that_bounded_takes_for_one_action():
    cfg = dataclasses.replace(BOUNDED, floor=0.25, milestone=0.4)
    assert total(make_step("nonsense", outcome=Outcome.INVALID_ACTION), cfg) == -0.25
    assert total(make_step(EDIT, 0.9, 0.1), cfg) == -0.25
    assert total(make_step(EDIT, 0.5, 0.48), cfg) == pytest.approx(-0.05)
    assert total(make_step(EDIT, 0.5, 1.5), cfg) == 1.0
    failed = executed(make_step(EDIT, outcome=Outcome.SCRIPT_ERROR), 1.0)
    assert total(failed, cfg) == -0.25
    execution = dataclasses.replace(failed.execution, milestones=("data_read",))
    failed = dataclasses.replace(failed, execution=execution)
    assert total(failed, cfg) == pytest.approx(-0.25 * (1 - 0.4 / 3))


@pytest.mark.parametrize(
    ("milestones", "progress"),
    [
        ((), 0),
        (("data_read",), 1 / 3),
        (("data_read", "submission_written"), 2 / 3),
        (("data_read", "ran_to_end", "submission_written"), 1),
        (("invented",), 0),
    ],
)
def test_bounded_pays_failed_scripts_by_what_the_sandbox_saw(milestones, progress):
    for outcome in (Outcome.SCRIPT_ERROR, Outcome.INVALID_SUBMISSION):
        step = executed(make_step(EDIT, outcome=outcome), 1.0)
        execution = dataclasses.replace(step.execution, milestones=milestones)
        step = dataclasses.replace(step, execution=execution)
        parts = reward_of(step, BOUNDED).parts
        assert parts == {"error": -1.0, "milestone": pytest.approx(0.2 * progress)}
        assert [total(step, cfg) for cfg in (V1, V2)] == [0, -1]


@pytest.mark.parametrize(
    ("selection", "test", "penalty"),
    [(0.7, 0.7, 0), (0.7, 0.68, 0), (0.7, 0.6, 0.1), (0.6, 0.7, 0), (0.9, 0.0, 0.5)],
)
def test_the_gap_penalty_punishes_what_looks_better_than_it_is(
    selection, test, penalty
):
    # Half of the gap in units of the headroom 0.4, beyond a tolerance of 0.05.
    step = make_step(EDIT, 0.5, selection)
    for base in (V1, V2, BOUNDED):
        cfg = dataclasses.replace(base, gap_weight=0.5)
        reward = reward_of(step, cfg, test_score=test)
        assert reward.parts["gap"] == pytest.approx(-penalty)
        plain = reward_of(step, cfg)
        assert reward.total == pytest.approx(plain.total - penalty)
    mirrored = dataclasses.replace(TASK, direction="min", baseline=-0.5, best=-0.9)
    step = make_step(EDIT, -0.5, -selection)
    cfg = dataclasses.replace(V1, gap_weight=0.5)
    reward = reward_of(step, cfg, mirrored, test_score=-test)
    assert reward.parts["gap"] == pytest.approx(-penalty)


def test_an_undo_that_changes_the_score_is_no_edit_in_the_paper():
    step = make_step(UNDO, 0.4, 0.8, outcome=Outcome.INFO)
    assert [total(step, cfg) for cfg in (V1, V2)] == [0.5, 0]


@pytest.mark.parametrize("after", [-1.0, 0.3, 0.45, 0.5, 0.55, 0.7, 2.0])
def test_bounded_pays_nothing_for_an_edit_and_its_undo(after):
    cfg = dataclasses.replace(BOUNDED, floor=0.25, clip=0.75)
    undo = make_step(UNDO, after, 0.5, outcome=Outcome.INFO)
    there, back = total(make_step(EDIT, 0.5, after), cfg), total(undo, cfg)
    assert there + back == 0
    assert (back > 0) == (after < 0.5)


@pytest.mark.parametrize(
    ("held", "before", "after", "won"),
    [
        # Headroom 0.4, floor 0.25. Up to what undoing brings back: the floor at most.
        ((0.5,), 0.1, 0.5, 0.25),
        ((0.5,), 0.1, 0.3, 0.25),
        ((0.5,), 0.46, 0.5, 0.1),
        ((0.5,), 0.1, 0.6, 0.25 + 0.25),  # and all that is beyond it
        ((0.5, 0.7), 0.5, 0.6, 0.25),  # the best of the stack counts
        ((0.7, 0.5), 0.6, 0.8, 0.25 + 0.25),
        ((0.5,), 0.5, 0.6, 0.25),  # nothing was lost
        ((0.5,), 0.6, 0.5, -0.25),  # losing costs what it did
        ((0.5,), 0.1, 1.5, 1.0),  # the clip holds for both parts together
        ((), 0.1, 0.5, 1.0),  # a task that begins there
    ],
)
def test_what_was_lost_is_regained_for_the_floor_at_most(held, before, after, won):
    cfg = dataclasses.replace(BOUNDED, floor=0.25)
    step = make_step(EDIT, before, after)
    assert total(step, cfg, held=held) == pytest.approx(won)
    mirrored = dataclasses.replace(TASK, direction="min", baseline=-0.5, best=-0.9)
    step = make_step(EDIT, -before, -after)
    minus = [-score for score in held]
    assert total(step, cfg, mirrored, minus) == pytest.approx(won)
    for cfg in (V1, V2):  # the paper's do not know what was
        step = make_step(EDIT, before, after)
        assert total(step, cfg, held=held) == total(step, cfg)


def test_breaking_and_mending_by_one_edit_never_pays_in_bounded():
    rng = random.Random(2)
    cfg = dataclasses.replace(BOUNDED, floor=0.2)
    for _ in range(500):
        good, bad = sorted((rng.uniform(-2, 2), rng.uniform(-2, 2)), reverse=True)
        there = total(make_step(EDIT, good, bad), cfg)
        by_edit = total(make_step(EDIT, bad, good), cfg, held=[good])
        by_undo = total(make_step(UNDO, bad, good, outcome=Outcome.INFO), cfg)
        assert by_edit == pytest.approx(by_undo)
        assert there + by_edit <= 1e-12


def test_a_trajectory_is_paid_for_what_could_be_undone_at_each_step():
    cfg = dataclasses.replace(BOUNDED, floor=0.25)
    steps = (
        make_step(EDIT, 0.5, 0.1),
        make_step(EDIT, 0.1, 0.6),  # regains 0.4 for the floor, wins 0.1 / 0.4
        make_step(UNDO, 0.6, 0.1, outcome=Outcome.INFO),
    )
    trajectory = make_trajectory(steps=steps, start_score=0.5)
    rewards = trajectory_rewards(trajectory, TASK, cfg)
    assert rewards == pytest.approx((-0.25, 0.5, -1.0))


def test_a_scored_run_is_no_edit():
    step = make_step(RUN, 0.4, 0.8)
    assert [total(step, cfg) for cfg in (V1, V2, BOUNDED)] == [0.5, 0, 0]


def test_without_headroom_every_score_is_neutral():
    task = make_task(baseline=0.9, best=0.9)
    step = make_step(EDIT, 0.5, 0.7)
    assert [total(step, cfg, task) for cfg in (V1, V2, BOUNDED)] == [0.5, 0, 0]


def test_fractional_differences_are_kept():
    small, large = make_step(EDIT, 0.5, 0.5001), make_step(EDIT, 0.5, 0.5002)
    for cfg in (V1, V2, BOUNDED):
        assert 0 < total(large, cfg) - total(small, cfg) < 0.02


def _random_step(rng):
    outcome = rng.choice(list(Outcome))
    action = rng.choice([EDIT, RUN, READ, UNDO, "nonsense"])
    before, after = rng.uniform(-1e3, 1e3), rng.uniform(-1e3, 1e3)
    step = make_step(action, before, after, outcome=outcome)
    return executed(step, rng.uniform(0, 50))


@pytest.mark.parametrize("preset", ["paper_v1", "paper_v2", "bounded"])
def test_rewards_are_finite_and_the_sum_of_their_parts(preset):
    rng = random.Random(0)
    cfg = RewardConfig(preset=preset, duration_weight=0.3)
    for _ in range(500):
        task = make_task(baseline=rng.uniform(-9, 9), best=rng.uniform(-9, 9))
        reward = reward_of(_random_step(rng), cfg, task)
        assert math.isfinite(reward.total)
        assert reward.total == sum(reward.parts.values())
        if preset == "paper_v1":
            assert 0 <= reward.total <= 1
        if preset == "bounded":
            assert -1.3 <= reward.total <= 1


@pytest.mark.parametrize("preset", ["paper_v1", "paper_v2", "bounded"])
def test_a_task_and_its_mirror_image_give_the_same_rewards(preset):
    rng = random.Random(1)
    cfg = RewardConfig(preset=preset)
    mirrored = dataclasses.replace(TASK, direction="min", baseline=-0.5, best=-0.9)
    for _ in range(300):
        step = _random_step(rng)
        mirror = dataclasses.replace(
            step, score_before=-step.score_before, score_after=-step.score_after
        )
        assert total(step, cfg) == total(mirror, cfg, mirrored)
