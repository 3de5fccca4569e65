"""Writes report/: index.html, one page a trajectory, tables, figures, summary.json.

Everything is plain files that open offline in a browser; no script is fetched.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from mlagent_jax.config import RunConfig
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.evaluation import figures, summary, tables
from mlagent_jax.evaluation.records import EvalRecord
from mlagent_jax.types import StepRecord, Task

# Figure file -> caption.
CAPTIONS = {
    "gain_by_task.png": "Mean relative gain of each task (symmetric log scale above "
    "10 %); held-in tasks left of the dashed line.",
    "gain_over_updates.png": "Mean relative gain during PPO, as in the paper's "
    "Figure 4; bars are standard errors over repeated trajectories.",
    "training.png": "Step reward and rates during PPO (sampled at temperature 1).",
    "outcomes.png": "What the sampled actions came to during PPO.",
}


def write_report(
    config: RunConfig,
    workdir: Path,
    out: Path,
    *,
    tasks: Mapping[str, Task],
    store: SnapshotStore,
    on_page: Callable[[], object],
) -> dict[str, Any]:
    """Writes the whole report and returns the summary.

    Args:
      config: of the run.
      workdir: run directory to read.
      out: folder to write, normally <workdir>/report.
      tasks: task id -> task.
      store: snapshots, for the scripts that trajectories start from.
      on_page: called once for every trajectory page.

    Raises:
      DataError: there is nothing to report, or a record is damaged.
    """
    names = config.eval.policies
    evaluations = summary.load_evaluations(workdir, names)
    fresh = summary.load_fresh_steps(workdir, names)
    numbers = summary.make_summary(config, workdir, tasks, evaluations, fresh)
    out.mkdir(parents=True, exist_ok=True)
    report_tables = [
        tables.overview_table(numbers),
        tables.fresh_table(numbers),
        tables.paper_table(numbers, tasks, "held_in"),
        tables.paper_table(numbers, tasks, "held_out"),
    ]
    for table in report_tables:
        tables.write_table(table, out / "tables")
    drawn = _draw_figures(workdir, out / "figures", numbers)
    pages = _Pages(out)
    rows = [
        pages.write_trajectory(record, tasks, store, on_page)
        for records in evaluations.values()
        for record in sorted(records, key=lambda r: r.trajectory.id)
    ]
    pages.write_index(config, numbers, report_tables, drawn, rows)
    (out / "summary.json").write_text(json.dumps(numbers, indent=1) + "\n")
    return numbers


def count_pages(workdir: Path, names: Sequence[str]) -> int:
    """Returns how many trajectory pages `write_report` will write."""
    return sum(len(v) for v in summary.load_evaluations(workdir, names).values())


def _draw_figures(workdir: Path, folder: Path, numbers: dict[str, Any]) -> list[str]:
    """Draws what the run has data for; returns the file names."""
    metrics = figures.read_jsonl(workdir / "ppo" / "metrics.jsonl")
    probes = figures.read_jsonl(workdir / "ppo" / "probes.jsonl")
    rollouts = figures.read_jsonl(workdir / "ppo" / "rollouts.jsonl")
    drawn = ["gain_by_task.png"]
    figures.gain_by_task(numbers, folder / drawn[0])
    if probes:
        drawn.append("gain_over_updates.png")
        figures.gain_over_updates(probes, folder / drawn[-1])
    if metrics:
        drawn.append("training.png")
        figures.training_curves(metrics, folder / drawn[-1])
    if rollouts:
        drawn.append("outcomes.png")
        figures.outcome_mix(rollouts, folder / drawn[-1])
    return drawn


class _Pages:
    """Renders the HTML files of one report folder."""

    def __init__(self, out: Path) -> None:
        self._out = out
        # Records hold hostile text (replies, script output): escape everything.
        self._environment = Environment(
            loader=PackageLoader("mlagent_jax.evaluation", "templates"),
            autoescape=select_autoescape(default=True, default_for_string=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters["diff_lines"] = diff_lines

    def write_trajectory(
        self,
        record: EvalRecord,
        tasks: Mapping[str, Task],
        store: SnapshotStore,
        on_page: Callable[[], object],
    ) -> dict[str, Any]:
        """Writes one trajectory's page; returns its row of the index."""
        trajectory = record.trajectory
        task = tasks[trajectory.task_id]
        files = store.get(trajectory.start_snapshot)
        href = f"trajectories/{_file_name(trajectory.id)}.html"
        html = self._environment.get_template("trajectory.html.j2").render(
            record=record,
            trajectory=trajectory,
            task=task,
            script=files[task.entry_script].decode(errors="replace"),
            steps=[
                {"number": i + 1, "step": step, "reward": reward, "label": _label(step)}
                for i, (step, reward) in enumerate(
                    zip(trajectory.steps, record.step_rewards, strict=True)
                )
            ],
        )
        path = self._out / href
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html)
        on_page()
        return {
            "href": href,
            "id": trajectory.id,
            "task": trajectory.task_id,
            "policy": trajectory.policy,
            "split": tables.SPLIT_NAMES[record.split],
            "steps": len(trajectory.steps),
            "status": trajectory.status.value,
            "gain": record.relative_gain_percent,
            "reward": sum(record.step_rewards) / max(len(record.step_rewards), 1),
            "outcomes": " ".join(sorted({s.outcome.value for s in trajectory.steps})),
        }

    def write_index(
        self,
        config: RunConfig,
        numbers: Mapping[str, Any],
        report_tables: Sequence[tables.Table],
        drawn: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
    ) -> None:
        """Writes index.html."""
        html = self._environment.get_template("index.html.j2").render(
            config=config,
            summary=numbers,
            tables=report_tables,
            figures=[(name, CAPTIONS[name]) for name in drawn],
            rows=rows,
            policies=sorted({row["policy"] for row in rows}),
            task_ids=sorted({row["task"] for row in rows}),
        )
        (self._out / "index.html").write_text(html)


def diff_lines(diff: str) -> list[tuple[str, str]]:
    """Returns (css class, line) for every line of a unified diff."""
    classes = {"+": "added", "-": "removed", "@": "hunk"}
    return [
        ("meta" if line[:3] in {"+++", "---"} else classes.get(line[:1], ""), line)
        for line in diff.splitlines()
    ]


def _label(step: StepRecord) -> str:
    if step.action is None:
        return step.reason or "no action"
    target = f" {step.action.path}" if step.action.path else ""
    return f"{step.action.kind.value}{target}"


def _file_name(trajectory_id: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", trajectory_id)
