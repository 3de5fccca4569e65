"""The paper's published numbers, and our rows beside them where tasks are the same.

A row of ours stands in the paper's table only if the run evaluated that very task
(by its Kaggle or MLAgentBench name, in the paper's metric). The tasks of the offline
pack are other tasks: they have tables of their own and are never mixed in.
"""

import dataclasses
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from mlagent_jax.evaluation.tables import SPLIT_NAMES, Table, format_number
from mlagent_jax.types import Split, Task, from_json

# Metric of the paper's table -> (our metric names, factor from ours to the paper's).
_METRICS: Mapping[str, tuple[tuple[str, ...], float]] = {
    "accuracy_percent": (("accuracy",), 100.0),
    "mae": (("mae",), 1.0),
    "mcrmse": (("mcrmse",), 1.0),
    "rmse": (("rmse",), 1.0),
    "logloss": (("log_loss",), 1.0),
    "map_at_5": (("map_at_5",), 1.0),
    "quadratic_weighted_kappa": (("qwk",), 1.0),
    "auc": (("roc_auc", "mean_column_roc_auc"), 1.0),
    "pearson": (("pearson",), 1.0),
}
_PAPERS = "ml-agent"  # The paper's own row.
MEASURED = "measured here"
PUBLISHED = "published"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AvgBest:
    """A cell of Table 1: average and best of 8 trajectories."""

    avg: float
    best: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedTask:
    """A row of Table 1.

    Attributes:
      task: name on Kaggle or in MLAgentBench.
      split: in the paper.
      modality: image, tabular or text.
      metric: the paper's, see `_METRICS`.
      direction: "max" if higher is better, else "min".
      scores: agent -> its cell.
    """

    task: str
    split: Split
    modality: str
    metric: str
    direction: str
    scores: dict[str, AvgBest]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """All published numbers that the report shows.

    Attributes:
      source: where they come from.
      table_1: rows in the paper's order.
      figure_3: agents and their gains divided by ML-Agent's, as read off.
      figure_4: curves of mean relative gain, as read off.
      version_2: headline numbers of the paper's second version.
    """

    source: str
    table_1: tuple[PublishedTask, ...]
    figure_3: Mapping[str, Any]
    figure_4: Mapping[str, Any]
    version_2: Mapping[str, Any]


def load_published() -> Published:
    """Returns the numbers that come with the package."""
    path = resources.files("mlagent_jax.evaluation") / "data" / "paper_results.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    return Published(
        source=value["source"],
        table_1=tuple(
            from_json(PublishedTask, row, f"{path}: table_1[{i}]")
            for i, row in enumerate(value["table_1"])
        ),
        figure_3=value["figure_3"],
        figure_4=value["figure_4"],
        version_2=value["version_2"],
    )


def published_table(
    published: Published, summary: Mapping[str, Any], tasks: Mapping[str, Task]
) -> Table:
    """Returns the paper's Table 1, with columns of ours that say so.

    Args:
      published: the paper's numbers.
      summary: of the run; its `tasks` are looked up by the paper's names.
      tasks: task id -> task of the run.
    """
    # ML-Agent first, then what was measured here, then the paper's baselines.
    agents = sorted(published.table_1[0].scores, key=lambda agent: agent != _PAPERS)
    ours = _our_policies(published, summary)
    columns = ["task", "set", "metric"]
    groups = [("", len(columns), "")]
    groups_of = [(agent, PUBLISHED) for agent in agents]
    groups_of[1:1] = [(f"{name} ({MEASURED})", "measured") for name in ours]
    for label, kind in groups_of:
        columns += [f"{label} avg", f"{label} best"]
        groups.append((label, 2, kind))
    rows: list[tuple[str, ...]] = []
    bold: set[tuple[int, int]] = set()
    for row in published.table_1:
        arrow = "↑" if row.direction == "max" else "↓"
        cells = [row.task, SPLIT_NAMES[row.split], f"{row.metric} {arrow}"]
        averages: dict[int, float] = {}
        values: list[AvgBest | None] = [row.scores[agent] for agent in agents]
        values[1:1] = [_measured(row, name, summary, tasks) for name in ours]
        for value in values:
            if value is not None:
                averages[len(cells)] = value.avg
            cells += ["not run", "not run"] if value is None else _pair(value)
        pick = max if row.direction == "max" else min
        top = pick(averages.values())
        bold |= {(len(rows), c) for c, v in averages.items() if v == top}
        rows.append(tuple(cells))
    return Table(
        name="paper_table1",
        title="The paper's Table 1: average and best of 8 trajectories, as published",
        columns=tuple(columns),
        rows=tuple(rows),
        best=frozenset(bold),
        groups=tuple(groups),
        note=_published_note(published, bool(ours)),
    )


def _published_note(published: Published, has_ours: bool) -> str:
    note = f"Published numbers: {published.source}"
    if has_ours:
        return f"{note} “{MEASURED}”: this run's, on the same tasks."
    return (
        f"{note} This run evaluated none of the paper's tasks, so it adds no "
        "column: the offline pack holds other tasks, whose scores cannot be "
        "compared with these."
    )


def _our_policies(published: Published, summary: Mapping[str, Any]) -> list[str]:
    shared = [r.task for r in published.table_1 if summary["tasks"].get(r.task)]
    return [
        name
        for name in summary["policies"]
        if any(name in summary["tasks"][task] for task in shared)
    ]


def _measured(
    row: PublishedTask, name: str, summary: Mapping[str, Any], tasks: Mapping[str, Task]
) -> AvgBest | None:
    numbers = summary["tasks"].get(row.task, {}).get(name)
    task = tasks.get(row.task)
    names, factor = _METRICS[row.metric]
    if numbers is None or task is None or task.metric not in names:
        return None
    if task.direction != row.direction:
        return None
    return AvgBest(avg=factor * numbers["avg"], best=factor * numbers["best"])


def _pair(cell: AvgBest) -> list[str]:
    return [format_number(cell.avg), format_number(cell.best)]
