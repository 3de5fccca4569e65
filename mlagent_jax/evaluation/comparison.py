"""Policies against each other: per-task gains, sign tests, differences.

Two policies ran the same tasks with the same seeds, steps and time, so their
trajectories pair up by task and number. Over the tasks of a split a sign test
counts tasks, not trajectories: how often would chance favour one policy this much?

Two versions of what a trajectory hands in are compared: the one that counts
(`eval.final`), and the one with the best selection score. Between them lies what a
policy breaks and leaves so.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from mlagent_jax.evaluation.records import EvalRecord
from mlagent_jax.evaluation.scores import (
    NUM_RESAMPLES,
    Estimate,
    SignTest,
    bootstrap_mean,
    by_task,
    sign_test,
)
from mlagent_jax.evaluation.tables import SPLIT_NAMES, Table
from mlagent_jax.types import Split

Evaluations = Mapping[str, Sequence[EvalRecord]]
Gains = Mapping[str, Sequence[float]]  # task id -> of its trajectories, in percent
Version = Literal["final", "selected"]
VERSION_NAMES: dict[Version, str] = {"final": "final", "selected": "best"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One policy against another on the tasks of a split that both ran.

    Attributes:
      ours: name of the policy.
      theirs: name of the one it is compared with.
      split: of the tasks.
      version: which submission of a trajectory is measured.
      difference: of mean relative gains in percentage points, tasks kept fixed.
      median_difference: over tasks.
      tasks: sign test over tasks.
    """

    ours: str
    theirs: str
    split: Split
    version: Version
    difference: Estimate
    median_difference: float
    tasks: SignTest


def compare(
    evaluations: Evaluations,
    ours: str,
    theirs: str,
    split: Split,
    version: Version = "final",
) -> Comparison | None:
    """Returns how `ours` does against `theirs`, None if they share no task."""
    a = gains_by_task(evaluations[ours], split, version)
    b = gains_by_task(evaluations[theirs], split, version)
    means = task_differences(a, b)
    if not means:
        return None
    return Comparison(
        ours=ours,
        theirs=theirs,
        split=split,
        version=version,
        difference=gain_difference(a, b),
        median_difference=float(np.median(means)),
        tasks=sign_test(means),
    )


def compare_all(evaluations: Evaluations) -> list[Comparison]:
    """Returns every pair that answers a question, on every split, in both versions.

    Where the best version is the one that counts, it is not listed twice.
    """
    records = itertools.chain.from_iterable(evaluations.values())
    versions = VERSION_NAMES if _versions_differ(records) else ("final",)
    return [
        comparison
        for ours, theirs in interesting_pairs(list(evaluations))
        for version in versions
        for split in SPLIT_NAMES
        if (comparison := compare(evaluations, ours, theirs, split, version))
    ]


def gains_by_task(
    records: Sequence[EvalRecord], split: Split, version: Version = "final"
) -> dict[str, list[float]]:
    """Returns task id -> relative gains of its trajectories in percent."""
    return {
        task_id: [
            r.relative_gain_percent if version == "final" else r.selected_gain_percent
            for r in group
        ]
        for task_id, group in by_task([r for r in records if r.split == split]).items()
    }


def task_differences(ours: Gains, theirs: Gains) -> list[float]:
    """Returns the difference of the mean gains on every task that both have."""
    shared = sorted(set(ours) & set(theirs))
    return [float(np.mean(ours[t]) - np.mean(theirs[t])) for t in shared]


def gain_difference(ours: Gains, theirs: Gains) -> Estimate:
    """Returns the mean over shared tasks; trajectories are resampled within each.

    Raises:
      ValueError: they share no task.
    """
    shared = sorted(set(ours) & set(theirs))
    if not shared:
        raise ValueError(f"no task in common: {sorted(ours)} and {sorted(theirs)}")
    rng = np.random.default_rng(0)
    total = np.zeros(NUM_RESAMPLES)
    for task_id in shared:
        total += _resampled_means(ours[task_id], rng)
        total -= _resampled_means(theirs[task_id], rng)
    low, high = np.percentile(total / len(shared), [2.5, 97.5])
    return Estimate(
        mean=float(np.mean(task_differences(ours, theirs))),
        ci95=(float(low), float(high)),
        num=len(shared),
    )


def interesting_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the pairs that answer a question, of the policies there are."""
    pairs = [("ppo", "sft"), ("ppo", "expert"), ("sft", "expert")]
    # A search over a policy against the policy itself, at the same budget.
    pairs += [(n, n.removeprefix("tree:")) for n in names if n.startswith("tree:")]
    pairs += [("ppo", n) for n in names if n.startswith(("api:", "hf:"))]
    return [(a, b) for a, b in pairs if a in names and b in names]


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Returns one row a pair and split."""
    rows = tuple(
        (
            f"{c.ours} − {c.theirs}",
            SPLIT_NAMES[c.split],
            VERSION_NAMES[c.version],
            f"{c.difference.mean:+.1f}",
            f"[{c.difference.ci95[0]:+.1f}, {c.difference.ci95[1]:+.1f}]",
            f"{c.median_difference:+.1f}",
            f"{c.tasks.num_better} / {c.tasks.num_worse} / {c.tasks.num_equal}",
            f"{c.tasks.p_value:.3f}",
        )
        for c in comparisons
    )
    return Table(
        name="comparisons",
        title="Policies against each other, in points of relative gain",
        columns=(
            "pair",
            "tasks",
            "version",
            "mean",
            "95 % interval",
            "median of tasks",
            "better / worse / equal",
            "sign test p",
        ),
        rows=rows,
        note="The interval resamples trajectories and keeps the tasks fixed; the sign "
        "test counts tasks. “Final” is the version that a trajectory ends with, “best” "
        "the one that its own feedback ranks first; both are measured on "
        "the hidden test part.",
    )


def gain_table(evaluations: Evaluations) -> Table:
    """Returns relative gain over the starter for every task and policy."""
    rows: list[tuple[str, ...]] = []
    for name, records in evaluations.items():
        if name == "starter":
            continue
        for task_id, group in by_task(records).items():
            gains = [r.relative_gain_percent for r in group]
            estimate, signs = bootstrap_mean(gains), sign_test(gains)
            low, high = estimate.ci95
            rows.append(
                (
                    task_id,
                    SPLIT_NAMES[group[0].split],
                    name,
                    f"{estimate.mean:+.1f}",
                    f"{np.median(gains):+.1f}",
                    f"[{low:+.1f}, {high:+.1f}]",
                    f"{max(gains):+.1f}",
                    f"{signs.num_better} / {signs.num_worse} / {signs.num_equal}",
                    f"{signs.p_value:.3f}",
                )
            )
    rows.sort(key=lambda row: (row[1], row[0]))
    return Table(
        name="gains",
        title="Relative gain over the starter, task by task, in percent",
        columns=(
            "task",
            "set",
            "policy",
            "mean",
            "median",
            "95 % interval",
            "best",
            "better / worse / equal",
            "sign test p",
        ),
        rows=tuple(rows),
        note="Better, worse, equal: trajectories against the starter's own score.",
    )


def _versions_differ(records: Iterable[EvalRecord]) -> bool:
    return any(r.relative_gain_percent != r.selected_gain_percent for r in records)


def _resampled_means(values: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    picks = rng.integers(len(values), size=(NUM_RESAMPLES, len(values)))
    return np.asarray(values)[picks].mean(axis=1)
