"""Statistics of evaluation: means, bootstrap intervals, per-task averages.

Intervals are percentile bootstraps with a fixed seed. Trajectories of one task are
not independent draws of "how good is the policy on a new task", so intervals of a
split resample trajectories within each task and keep the tasks fixed: they say how
well the mean over these tasks is known, nothing about other tasks.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from mlagent_jax.evaluation.records import EvalRecord, FreshStepRecord
from mlagent_jax.types import Outcome, Task

NUM_RESAMPLES = 2_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95 % bootstrap interval.

    Attributes:
      mean: point estimate.
      ci95: lower and upper end.
      num: number of values behind it.
    """

    mean: float
    ci95: tuple[float, float]
    num: int


def stratified_mean(groups: Mapping[str, Sequence[float]]) -> Estimate:
    """Returns the mean over groups of the group means.

    Args:
      groups: e.g. task id -> gains of its trajectories; resampled within.

    Raises:
      ValueError: no group, or an empty one.
    """
    if not groups or any(len(values) == 0 for values in groups.values()):
        raise ValueError(f"every group needs values: {sorted(groups)}")
    rng = np.random.default_rng(0)
    total = np.zeros(NUM_RESAMPLES)
    mean = 0.0
    for name in sorted(groups):
        values = np.asarray(groups[name], dtype=np.float64)
        picks = rng.integers(len(values), size=(NUM_RESAMPLES, len(values)))
        total += values[picks].mean(axis=1) / len(groups)
        mean += float(values.mean()) / len(groups)
    low, high = np.percentile(total, [2.5, 97.5])
    num = sum(len(values) for values in groups.values())
    return Estimate(mean=mean, ci95=(float(low), float(high)), num=num)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """A few numbers about a sample.

    Attributes:
      mean: of the values.
      median: of the values.
      ci95: 95 % interval of the mean, Student's t; both ends are the value itself
        where there is only one.
      num: how many values.
    """

    mean: float
    median: float
    ci95: tuple[float, float]
    num: int


def summarize(values: Sequence[float]) -> Summary:
    """Returns mean, median and interval of a few independent values, e.g. seeds.

    A bootstrap of three seeds would be far too narrow; Student's t is not.

    Raises:
      ValueError: there are no values.
    """
    if len(values) == 0:
        raise ValueError("a summary needs at least one value")
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    half = 0.0
    if len(array) > 1:
        error = float(array.std(ddof=1)) / np.sqrt(len(array))
        half = float(stats.t.ppf(0.975, len(array) - 1)) * error
    return Summary(
        mean=mean,
        median=float(np.median(array)),
        ci95=(mean - half, mean + half),
        num=len(array),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignTest:
    """Two-sided sign test of paired differences; ties say nothing and are left out.

    Attributes:
      num_better: differences above zero.
      num_worse: differences below zero.
      num_equal: ties.
      p_value: chance of a split at least this uneven if either sign is as likely.
    """

    num_better: int
    num_worse: int
    num_equal: int
    p_value: float


def sign_test(differences: Sequence[float]) -> SignTest:
    """Returns the sign test of `differences`; p is 1.0 if all are ties."""
    num_better = sum(d > 0 for d in differences)
    num_worse = sum(d < 0 for d in differences)
    num_signed = num_better + num_worse
    p_value = 1.0
    if num_signed:
        p_value = float(stats.binomtest(num_better, num_signed).pvalue)
    return SignTest(
        num_better=num_better,
        num_worse=num_worse,
        num_equal=len(differences) - num_signed,
        p_value=p_value,
    )


def bootstrap_mean(values: Sequence[float]) -> Estimate:
    """Returns the mean of independent values with its percentile interval.

    Raises:
      ValueError: there are no values.
    """
    return stratified_mean({"": values})


def paired_difference(
    ours: Sequence[FreshStepRecord], theirs: Sequence[FreshStepRecord]
) -> Estimate:
    """Returns mean reward of `ours` minus `theirs` over the states both answered.

    States are resampled, not samples: replies to one state share its luck.

    Raises:
      ValueError: they have no state in common.
    """
    a, b = _mean_by_state(ours), _mean_by_state(theirs)
    states = sorted(set(a) & set(b))
    if not states:
        raise ValueError("the two policies answered no state in common")
    differences = np.asarray([a[s] - b[s] for s in states])
    rng = np.random.default_rng(0)
    picks = rng.integers(len(states), size=(NUM_RESAMPLES, len(states)))
    low, high = np.percentile(differences[picks].mean(axis=1), [2.5, 97.5])
    return Estimate(
        mean=float(differences.mean()),
        ci95=(float(low), float(high)),
        num=len(states),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One policy on one task, as a cell of Table 1.

    Attributes:
      avg: mean final test score over the trajectories.
      best: best final test score in the metric's direction.
      gain: mean relative gain in percent.
    """

    avg: float
    best: float
    gain: float


def task_score(records: Sequence[EvalRecord], task: Task) -> TaskScore:
    """Returns average, best and mean relative gain of one task's trajectories."""
    finals = np.asarray([r.final_score for r in records])
    best = finals.max() if task.direction == "max" else finals.min()
    gains = [r.relative_gain_percent for r in records]
    return TaskScore(
        avg=float(finals.mean()), best=float(best), gain=float(np.mean(gains))
    )


def by_task(records: Sequence[EvalRecord]) -> dict[str, list[EvalRecord]]:
    """Returns task id -> its records, in order of trajectory id."""
    groups: dict[str, list[EvalRecord]] = {}
    for record in sorted(records, key=lambda r: r.trajectory.id):
        groups.setdefault(record.trajectory.task_id, []).append(record)
    return groups


def valid_action_rate(records: Sequence[EvalRecord]) -> float:
    """Returns the part of all steps whose reply was a valid action."""
    outcomes = [s.outcome for r in records for s in r.trajectory.steps]
    valid = sum(o is not Outcome.INVALID_ACTION for o in outcomes)
    return valid / max(len(outcomes), 1)


def mean_step_reward(records: Sequence[EvalRecord]) -> float:
    """Returns the mean reward over all steps of the trajectories."""
    rewards = [x for r in records for x in r.step_rewards]
    return float(np.mean(rewards)) if rewards else 0.0


def _mean_by_state(records: Sequence[FreshStepRecord]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for record in records:
        groups.setdefault(record.state_id, []).append(record.reward)
    return {state: float(np.mean(values)) for state, values in groups.items()}
