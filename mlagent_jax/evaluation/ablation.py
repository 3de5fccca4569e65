"""Ablation tables: the file that `launch.ablate` writes and the report reads.

`<folder>/<name>.json` holds one comparison: variants, and for each the numbers of
every seed as they were measured. Means, medians and intervals are made here and
nowhere else, so that a table says the same thing wherever it is printed.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlagent_jax.errors import DataError
from mlagent_jax.evaluation.comparison import (
    VERSION_NAMES,
    Gains,
    Version,
    gain_difference,
    task_differences,
)
from mlagent_jax.evaluation.scores import Summary, sign_test, summarize
from mlagent_jax.evaluation.tables import SPLIT_NAMES, Table
from mlagent_jax.types import Split, from_json, to_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One evaluation on the side of training, for curves in the form of Figure 4.

    Attributes:
      update: updates done before it.
      train_seconds: wall-clock seconds of training before it.
      num_executions: script executions before it.
      gain_percent: split -> mean relative gain, e.g. {"held_in": 3.1}.
    """

    update: int
    train_seconds: float
    num_executions: int
    gain_percent: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationRun:
    """What one seed of one variant measured.

    Attributes:
      seed: of the run.
      values: metric -> number; a metric that a run lacks is left out.
      gains: split -> task id -> relative gains of its trajectories in percent, for
        differences between variants of one seed; may be empty.
      selected_gains: the same of each trajectory's version with the best selection
        score; may be empty.
      curve: evaluations during training, oldest first; may be empty.
    """

    seed: int
    values: dict[str, float]
    gains: dict[Split, dict[str, tuple[float, ...]]] = dataclasses.field(
        default_factory=dict
    )
    selected_gains: dict[Split, dict[str, tuple[float, ...]]] = dataclasses.field(
        default_factory=dict
    )
    curve: tuple[CurvePoint, ...] = ()

    def gains_of(self, version: Version) -> dict[Split, dict[str, tuple[float, ...]]]:
        """Returns the gains of one version of every trajectory."""
        return self.gains if version == "final" else self.selected_gains


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One setting of the thing that is compared.

    Attributes:
      name: as shown, e.g. "without exploration".
      runs: one a finished seed.
    """

    name: str
    runs: tuple[AblationRun, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """One comparison.

    Attributes:
      name: file stem, e.g. "step_vs_episode".
      title: one line for the caption.
      metrics: metric -> column header, in column order.
      variants: rows, in order; the first is what the others are compared with.
      note: what a reader must know, e.g. what was held equal; may be empty.
    """

    name: str
    title: str
    metrics: dict[str, str]
    variants: tuple[Variant, ...]
    note: str = ""

    def variants_with_runs(self) -> list[Variant]:
        """Returns those that were run with one seed at least."""
        return [variant for variant in self.variants if variant.runs]


def write_ablation(folder: Path, ablation: Ablation) -> Path:
    """Writes <folder>/<name>.json as a whole or not at all; returns its path.

    Raises:
      ValueError: the name cannot be a file stem.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", ablation.name):
        raise ValueError(
            f"ablation name {ablation.name!r}: expected letters, digits, _ or -"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{ablation.name}.json"
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(to_json(ablation), indent=1) + "\n")
    os.replace(partial, path)
    return path


def read_ablations(folder: Path) -> list[Ablation]:
    """Returns the comparisons of a folder by name; none if it does not exist.

    Raises:
      DataError: a file is not what `write_ablation` writes.
    """
    found: list[Ablation] = []
    for path in sorted(folder.glob("*.json")):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path}: not JSON ({error}); make it anew") from error
        found.append(from_json(Ablation, value, str(path)))
    return found


def ablation_summaries(ablation: Ablation) -> dict[str, dict[str, Summary]]:
    """Returns variant -> metric -> summary over seeds, for metrics with values."""
    return {
        variant.name: {
            metric: summarize(values)
            for metric in ablation.metrics
            if (
                values := [r.values[metric] for r in variant.runs if metric in r.values]
            )
        }
        for variant in ablation.variants
    }


def ablation_table(ablation: Ablation) -> Table:
    """Returns one row a variant: mean, median and interval of every metric."""
    columns = ["variant", "seeds"]
    for header in ablation.metrics.values():
        columns += [f"{header} mean", "median", "95 % interval"]
    summaries = ablation_summaries(ablation)
    rows: list[tuple[str, ...]] = []
    for variant in ablation.variants:
        cells = [variant.name, str(len(variant.runs))]
        for metric in ablation.metrics:
            summary = summaries[variant.name].get(metric)
            cells += ["–"] * 3 if summary is None else _cells(summary)
        rows.append(tuple(cells))
    return Table(
        name=f"ablation_{ablation.name}",
        title=ablation.title,
        columns=tuple(columns),
        rows=tuple(rows),
        note=ablation.note,
    )


def difference_table(ablation: Ablation, version: Version = "final") -> Table | None:
    """Returns every variant minus the first one, seed by seed and over the seeds.

    Runs of one seed share what they have in common, down to the fine-tuned weights,
    so the difference within a seed says more than two means. None if no two variants
    have a seed in common.
    """
    first, *others = ablation.variants
    base = {run.seed: run.gains_of(version) for run in first.runs}
    columns = ["variant", "seed"]
    for name in SPLIT_NAMES.values():
        columns += [f"{name} difference", "95 % interval", "better / worse / equal"]
    rows: list[tuple[str, ...]] = []
    for variant in others:
        pairs = {
            run.seed: (run.gains_of(version), base[run.seed])
            for run in variant.runs
            if run.gains_of(version) and base.get(run.seed)
        }
        for seed, (ours, theirs) in pairs.items():
            cells = [variant.name, str(seed)]
            for split in SPLIT_NAMES:
                cells += _difference_cells(ours.get(split, {}), theirs.get(split, {}))
            rows.append(tuple(cells))
        if len(pairs) > 1:
            cells = [variant.name, "all"]
            for split in SPLIT_NAMES:
                cells += _mean_difference_cells(list(pairs.values()), split)
            rows.append(tuple(cells))
    if not rows:
        return None
    suffix = "" if version == "final" else "_best"
    counted = "" if version == "final" else ", best version"
    return Table(
        name=f"ablation_{ablation.name}_differences{suffix}",
        title=f"{ablation.title}: against “{first.name}” of the same seed{counted}",
        columns=tuple(columns),
        rows=tuple(rows),
        note="Points of relative gain. Within a seed the interval resamples "
        "trajectories and tasks are counted; over seeds it is Student's t of the "
        "seeds' differences, and seeds are counted.",
    )


def ablation_tables(ablation: Ablation) -> list[Table]:
    """Returns the tables of one comparison: means, then differences in each version."""
    differences = [difference_table(ablation, version) for version in VERSION_NAMES]
    return [ablation_table(ablation), *(table for table in differences if table)]


def _difference_cells(ours: Gains, theirs: Gains) -> list[str]:
    differences = task_differences(ours, theirs)
    if not differences:
        return ["–"] * 3
    estimate = gain_difference(ours, theirs)
    return _signed_cells(estimate.mean, estimate.ci95, differences)


def _mean_difference_cells(
    pairs: Sequence[tuple[Mapping[Split, Gains], Mapping[Split, Gains]]], split: Split
) -> list[str]:
    of_pairs = [
        task_differences(ours.get(split, {}), theirs.get(split, {}))
        for ours, theirs in pairs
    ]
    means = [sum(of_pair) / len(of_pair) for of_pair in of_pairs if of_pair]
    if len(means) < 2:
        return ["–"] * 3
    summary = summarize(means)
    return _signed_cells(summary.mean, summary.ci95, means)


def _signed_cells(
    mean: float, ci95: tuple[float, float], differences: Sequence[float]
) -> list[str]:
    signs = sign_test(differences)
    return [
        f"{mean:+.1f}",
        f"[{ci95[0]:+.1f}, {ci95[1]:+.1f}]",
        f"{signs.num_better} / {signs.num_worse} / {signs.num_equal}",
    ]


def _cells(summary: Summary) -> list[str]:
    low, high = summary.ci95
    interval = f"[{low:.4g}, {high:.4g}]" if summary.num > 1 else "one seed"
    return [f"{summary.mean:.4g}", f"{summary.median:.4g}", interval]
