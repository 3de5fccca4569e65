"""Filters of expert trajectories by hand-made cases."""

import pytest

from mlagent_jax.config import KeepConfig
from mlagent_jax.errors import ConfigError
from mlagent_jax.explore.keep import Filter
from mlagent_jax.types import Outcome
from tests.samples import make_edit, make_step, make_task, make_trajectory


def make(after, *, thought="", num_invalid=0):
    invalid = [make_step("what?", outcome=Outcome.INVALID_ACTION)] * num_invalid
    steps = [*invalid, make_step(make_edit("a", "b", thought), after=after)]
    return make_trajectory(steps=steps)


@pytest.mark.parametrize(
    ("cfg", "trajectory", "reason"),
    [
        (KeepConfig(), make(0.1, num_invalid=9), ""),
        (KeepConfig(max_invalid_frac=0.5), make(0.1, num_invalid=1), ""),
        (KeepConfig(max_invalid_frac=0.5), make(0.9, num_invalid=2), "invalid"),
        (KeepConfig(only_improving=True), make(0.6), ""),
        (KeepConfig(only_improving=True), make(0.5), "not_improving"),
        (KeepConfig(only_improving=True), make_trajectory(), "not_improving"),
    ],
)
def test_a_trajectory_is_kept_or_the_reason_is_named(cfg, trajectory, reason):
    assert Filter(cfg).reject_reason(trajectory, make_task()) == reason


def test_improving_follows_the_direction_of_the_metric():
    task = make_task(direction="min")
    assert Filter(KeepConfig(only_improving=True)).reject_reason(make(0.4), task) == ""


def test_equal_actions_are_kept_once_whatever_was_thought():
    keep = Filter(KeepConfig(unique=True))
    task = make_task()
    assert keep.reject_reason(make(0.6), task) == ""
    assert keep.reject_reason(make(0.6, thought="Well."), task) == "duplicate"
    assert keep.reject_reason(make(0.6, num_invalid=1), task) == ""
    later = Filter(KeepConfig(unique=True))
    later.remember(make(0.6))
    assert later.reject_reason(make(0.6), task) == "duplicate"


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ConfigError, match=r"keep\.max_invalid_frac = 2"):
        KeepConfig(max_invalid_frac=2.0)
