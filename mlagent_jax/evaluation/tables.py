"""Tables of the report: one list of rows, written as Markdown, CSV or HTML cells."""

import csv
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlagent_jax.types import Split, Task

SPLIT_NAMES: dict[Split, str] = {"held_in": "held-in", "held_out": "held-out"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A titled table of strings.

    Attributes:
      name: file stem.
      title: caption.
      columns: headers.
      rows: cells, each row as long as `columns`.
      best: (row, column) of cells to set in bold.
      note: what a reader must know to read it right; may be empty.
      groups: (label, columns, kind) of a header above the columns, for pages; the
        label is a prefix of its columns' names. Kind is "published", "measured" or
        "". Empty for none.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()
    note: str = ""
    groups: tuple[tuple[str, int, str], ...] = ()

    def header_cells(self) -> list[str]:
        """Returns the column names without the labels of the groups above them."""
        labels = [label for label, count, _ in self.groups for _ in range(count)]
        if not labels:
            return list(self.columns)
        return [
            column.removeprefix(label).strip() if label else column
            for label, column in zip(labels, self.columns, strict=True)
        ]

    def group_starts(self) -> set[int]:
        """Returns the columns that a labelled group begins at."""
        starts, position = set[int](), 0
        for label, count, _ in self.groups:
            if label:
                starts.add(position)
            position += count
        return starts

    def word_columns(self) -> set[int]:
        """Returns the columns after the first that hold words rather than numbers."""
        return {
            j
            for j in range(1, len(self.columns))
            if self.rows and all(row[j][:1].isalpha() for row in self.rows)
        }


def overview_table(summary: Mapping[str, Any]) -> Table:
    """Returns the short table of results that a run ends with."""
    rows: list[tuple[str, ...]] = []
    for name, splits in summary["policies"].items():
        for split, numbers in splits.items():
            low, high = numbers["ci95"]
            best_low, best_high = numbers["selected_ci95"]
            rows.append(
                (
                    name,
                    SPLIT_NAMES[split],
                    f"{numbers['mean_relative_gain_percent']:+.1f}",
                    f"[{low:+.1f}, {high:+.1f}]",
                    f"{numbers['median_relative_gain_percent']:+.1f}",
                    f"{numbers['mean_selected_gain_percent']:+.1f}",
                    f"[{best_low:+.1f}, {best_high:+.1f}]",
                    f"{100 * numbers['valid_action_rate']:.1f}",
                    f"{numbers['mean_step_reward']:.3f}",
                    f"{numbers['mean_steps']:.1f}",
                )
            )
    return Table(
        name="overview",
        title="Mean relative gain over the starter script on the hidden test part",
        columns=(
            "policy",
            "tasks",
            "gain %",
            "95 % interval",
            "median of tasks",
            "best version %",
            "its 95 % interval",
            "valid actions %",
            "step reward",
            "steps",
        ),
        rows=tuple(rows),
        note="“Best” counts the version of a trajectory that its own "
        "feedback ranks first instead of the one that it ends with.",
    )


def paper_table(
    summary: Mapping[str, Any], tasks: Mapping[str, Task], split: Split
) -> Table:
    """Returns a table in the form of the paper's Table 1: Avg and Best of k."""
    policies = list(summary["policies"])
    columns = ["task", "metric", "baseline"]
    groups = [("", len(columns), "")]
    for name in policies:
        columns += [f"{name} avg", f"{name} best"]
        groups.append((name, 2, "measured"))
    rows: list[tuple[str, ...]] = []
    best: set[tuple[int, int]] = set()
    for task_id, numbers in summary["tasks"].items():
        task = tasks[task_id]
        if task.split != split or not numbers:
            continue
        arrow = "↑" if task.direction == "max" else "↓"
        cells = [task_id, f"{task.metric} {arrow}", format_number(task.baseline)]
        averages: dict[int, float] = {}
        for name in policies:
            if name not in numbers:
                cells += ["–", "–"]
                continue
            averages[len(cells)] = numbers[name]["avg"]
            cells += [
                format_number(numbers[name]["avg"]),
                format_number(numbers[name]["best"]),
            ]
        top = max(averages.values(), key=lambda v: task.sign * v)
        best |= {(len(rows), c) for c, v in averages.items() if v == top}
        rows.append(tuple(cells))
    k = summary["trajectories_per_task"]
    return Table(
        name=f"table1_{split}",
        title=f"{SPLIT_NAMES[split]} tasks: average and best of {k} trajectories",
        columns=tuple(columns),
        rows=tuple(rows),
        best=frozenset(best),
        groups=tuple(groups),
    )


def fresh_table(summary: Mapping[str, Any]) -> Table:
    """Returns mean step rewards on states that no training saw."""
    rows = [
        (
            name,
            f"{numbers['mean_step_reward']:.4f}",
            f"{100 * numbers['valid_action_rate']:.1f}",
            str(numbers["num_steps"]),
        )
        for name, numbers in summary["fresh_states"].items()
    ]
    difference = summary.get("ppo_minus_sft_step_reward")
    if difference is not None:
        low, high = difference["ci95"]
        interval = f"{difference['mean']:+.4f} [{low:+.4f}, {high:+.4f}]"
        rows.append(("ppo − sft", interval, "", f"{difference['num_states']} states"))
    return Table(
        name="fresh_states",
        title="Step reward on fresh states of held-in tasks",
        columns=("policy", "mean step reward", "valid actions %", "steps"),
        rows=tuple(rows),
    )


def to_markdown(table: Table) -> str:
    """Returns `table` as GitHub-flavoured Markdown with its title."""
    lines = [
        f"**{table.title}**",
        "",
        "| " + " | ".join(table.columns) + " |",
        "|" + "---|" * len(table.columns),
    ]
    for i, row in enumerate(table.rows):
        cells = [
            f"**{c}**" if c and (i, j) in table.best else c for j, c in enumerate(row)
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if table.note:
        lines += ["", table.note]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """Returns `table` as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return buffer.getvalue()


def to_text(table: Table) -> str:
    """Returns `table` aligned for a terminal."""
    grid = [table.columns, *table.rows]
    widths = [max(len(row[j]) for row in grid) for j in range(len(table.columns))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in grid
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([table.title, "", lines[0], rule, *lines[1:]])


def write_table(table: Table, folder: Path) -> None:
    """Writes <folder>/<name>.md and .csv."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{table.name}.md").write_text(to_markdown(table))
    (folder / f"{table.name}.csv").write_text(to_csv(table))


def format_number(value: float) -> str:
    """Returns a score with four significant digits, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
