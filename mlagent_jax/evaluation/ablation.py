"""Ablation tables: the file that `launch.ablate` writes and the report reads.

`<folder>/<name>.json` holds one comparison: variants, and for each the numbers of
every seed as they were measured. Means, medians and intervals are made here and
nowhere else, so that a table says the same thing wherever it is printed.
"""

import dataclasses
import json
import os
import re
from pathlib import Path

from mlagent_jax.errors import DataError
from mlagent_jax.evaluation.scores import Summary, summarize
from mlagent_jax.evaluation.tables import Table
from mlagent_jax.types import from_json, to_json


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
      curve: evaluations during training, oldest first; may be empty.
    """

    seed: int
    values: dict[str, float]
    curve: tuple[CurvePoint, ...] = ()


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


def _cells(summary: Summary) -> list[str]:
    low, high = summary.ci95
    interval = f"[{low:.4g}, {high:.4g}]" if summary.num > 1 else "one seed"
    return [f"{summary.mean:.4g}", f"{summary.median:.4g}", interval]
