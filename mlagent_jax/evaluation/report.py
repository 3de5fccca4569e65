"""Writes a report: index.html with a trajectory browser, tables, figures, summary.json.

Everything is plain files that open offline in a browser; nothing is fetched from a
network. With `paper`, the published tables and figures stand beside what was measured.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from mlagent_jax.config import RunConfig
from mlagent_jax.data.jsonl import read_lines
from mlagent_jax.data.trajectories import TrajectoryFile
from mlagent_jax.env.reward import trajectory_rewards
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.evaluation import comparison, costs, figures, paper_figures, tables
from mlagent_jax.evaluation.ablation import (
    Ablation,
    ablation_tables,
    read_ablations,
)
from mlagent_jax.evaluation.ablation_figures import ablation_figure, curve_figure
from mlagent_jax.evaluation.browser import ChunkWriter, Entry
from mlagent_jax.evaluation.drawing import Figure, policy_color
from mlagent_jax.evaluation.paper import Published, load_published, published_table
from mlagent_jax.evaluation.records import EvalRecord
from mlagent_jax.evaluation.summary import (
    SPLITS,
    load_evaluations,
    load_fresh_steps,
    make_summary,
)
from mlagent_jax.evaluation.tables import Table
from mlagent_jax.types import Task, Trajectory

_TEMPLATES = ("mlagent_jax.evaluation", "templates")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page.

    Attributes:
      id: anchor.
      title: heading and entry of the navigation.
      text: introduction; may be empty.
      figures: drawn figures.
      tables: tables below them.
    """

    id: str
    title: str
    text: str = ""
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Results:
    """What a report is made of."""

    config: RunConfig
    workdir: Path
    tasks: Mapping[str, Task]
    evaluations: Mapping[str, Sequence[EvalRecord]]
    summary: Mapping[str, Any]
    ledger: Sequence[costs.PhaseCost]
    ablations: Sequence[Ablation]


def write_report(
    config: RunConfig,
    workdir: Path,
    out: Path,
    *,
    tasks: Mapping[str, Task],
    store: SnapshotStore,
    on_trajectory: Callable[[], object],
    with_paper: bool = False,
    ablation_dir: Path | None = None,
) -> dict[str, Any]:
    """Writes the whole report and returns the summary.

    Args:
      config: of the run.
      workdir: run directory to read.
      out: folder to write, normally <workdir>/report.
      tasks: task id -> task.
      store: snapshots, for the scripts that trajectories went through.
      on_trajectory: called once for every trajectory of the browser.
      with_paper: whether the paper's tables and figures stand beside ours.
      ablation_dir: where `launch.ablate` wrote its tables; None looks into the run.

    Raises:
      DataError: there is nothing to report, or a record is damaged.
    """
    names = config.eval.policies
    evaluations = load_evaluations(workdir, names)
    fresh = load_fresh_steps(workdir, names)
    ledger = costs.make_ledger(config, workdir, evaluations)
    summary = make_summary(config, workdir, tasks, evaluations, fresh, ledger)
    results = _Results(
        config=config,
        workdir=workdir,
        tasks=tasks,
        evaluations=evaluations,
        summary=summary,
        ledger=ledger,
        ablations=[
            ablation
            for ablation in read_ablations(ablation_dir or workdir / "ablation")
            if len(ablation.variants_with_runs()) > 1
        ],
    )
    out.mkdir(parents=True, exist_ok=True)
    sections = _make_sections(results, out / "figures", with_paper)
    for section in sections:
        for table in section.tables:
            tables.write_table(table, out / "tables")
    chunks = ChunkWriter(out / "trajectories", store)
    for entry in iter_entries(results.config, workdir, tasks, evaluations):
        chunks.add(entry)
        on_trajectory()
    index = chunks.finish({"run": config.name, "tasks": _task_cards(tasks)})
    page = _render(config, summary, sections, index)
    (out / "index.html").write_text(page, encoding="utf-8")
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def iter_entries(
    config: RunConfig,
    workdir: Path,
    tasks: Mapping[str, Task],
    evaluations: Mapping[str, Sequence[EvalRecord]],
) -> Iterator[Entry]:
    """Yields evaluated trajectories, then collected ones of tasks that still exist."""
    for records in evaluations.values():
        for record in sorted(records, key=lambda r: r.trajectory.id):
            yield Entry(
                trajectory=record.trajectory,
                task=tasks[record.trajectory.task_id],
                source="evaluation",
                rewards=record.step_rewards,
                scores={
                    "starter": record.start_score,
                    "final": record.final_score,
                    "best on selection": record.selected_score,
                },
                gain=record.relative_gain_percent,
            )
    for trajectory in _collected(workdir):
        task = tasks.get(trajectory.task_id)
        if task is None:
            continue
        yield Entry(
            trajectory=trajectory,
            task=task,
            source="collected",
            rewards=trajectory_rewards(trajectory, task, config.ppo.reward),
            scores={},
            gain=None,
        )


def count_trajectories(workdir: Path, names: Sequence[str]) -> int:
    """Returns how many trajectories `write_report` will go through."""
    evaluated = sum(len(v) for v in load_evaluations(workdir, names).values())
    return evaluated + sum(len(file) for file in _collected_files(workdir))


def _collected(workdir: Path) -> Iterator[Trajectory]:
    return (t for file in _collected_files(workdir) for t in file)


def _collected_files(workdir: Path) -> list[TrajectoryFile]:
    paths = [workdir / "trajectories" / f"{n}.jsonl" for n in ("expert", "fresh")]
    return [TrajectoryFile(path) for path in paths if path.exists()]


def _make_sections(
    results: _Results, figure_dir: Path, with_paper: bool
) -> list[Section]:
    published = load_published()
    sections = [_results_section(results, figure_dir)]
    if with_paper:
        sections.append(_paper_section(results, published, figure_dir))
    sections += [
        _training_section(results, figure_dir),
        _ablation_section(results, figure_dir),
        _cost_section(results, published, figure_dir),
    ]
    return [s for s in sections if s.figures or s.tables]


def _results_section(results: _Results, figure_dir: Path) -> Section:
    evaluations, summary = results.evaluations, results.summary
    compared = comparison.compare_all(evaluations)
    shown = [tables.overview_table(summary)]
    if compared:
        shown.append(comparison.comparison_table(compared))
    if summary["fresh_states"]:
        shown.append(tables.fresh_table(summary))
    for split in SPLITS:
        table = tables.paper_table(summary, results.tasks, split)
        if table.rows:
            shown.append(table)
    shown.append(comparison.gain_table(evaluations))
    return Section(
        id="results",
        title="Results",
        text="Scores are on hidden test rows that no prompt, reward or model choice "
        "ever saw. Every policy had the same seeds, steps and time.",
        figures=(figures.gain_by_task(evaluations, figure_dir),),
        tables=tuple(shown),
    )


def _paper_section(
    results: _Results, published: Published, figure_dir: Path
) -> Section:
    drawn = [paper_figures.figure_3(published, results.evaluations, figure_dir)]
    probes = _read_all(results.workdir / "ppo" / "probes.jsonl")
    drawn.append(paper_figures.figure_4(published, probes, results.summary, figure_dir))
    return Section(
        id="paper",
        title="Beside the paper",
        text="What the paper published stands on the left or under “published”; what "
        "this run measured is marked “measured here”. Unless a table says otherwise "
        "the tasks are not the same, and neither are the models: compare the shapes.",
        figures=tuple(figure for figure in drawn if figure is not None),
        tables=(published_table(published, results.summary, results.tasks),),
    )


def _training_section(results: _Results, figure_dir: Path) -> Section:
    metrics = _read_all(results.workdir / "ppo" / "metrics.jsonl")
    rollouts = _read_all(results.workdir / "ppo" / "rollouts.jsonl")
    drawn: list[Figure] = []
    if metrics:
        drawn.append(figures.training_curves(metrics, figure_dir))
    if rollouts:
        drawn.append(figures.outcome_mix(rollouts, figure_dir))
    return Section(id="training", title="Training", figures=tuple(drawn))


def _ablation_section(results: _Results, figure_dir: Path) -> Section:
    drawn = [
        figure
        for ablation in results.ablations
        for figure in (
            ablation_figure(ablation, figure_dir),
            curve_figure(ablation, figure_dir),
        )
        if figure is not None
    ]
    return Section(
        id="ablations",
        title="Ablations",
        text="Every variant is a run of its own for each seed; intervals are over "
        "seeds.",
        figures=tuple(drawn),
        tables=tuple(
            table
            for ablation in results.ablations
            for table in ablation_tables(ablation)
        ),
    )


def _cost_section(results: _Results, published: Published, figure_dir: Path) -> Section:
    return Section(
        id="costs",
        title="Costs",
        figures=(
            paper_figures.cost_figure(
                published, results.ledger, results.summary, figure_dir
            ),
        ),
        tables=(costs.cost_table(results.ledger),),
    )


def _read_all(path: Path) -> list[dict[str, Any]]:
    return [line for line, _ in read_lines(path)]


def _task_cards(tasks: Mapping[str, Task]) -> dict[str, Any]:
    return {
        task.id: {
            "description": task.description,
            "metric": task.metric,
            "direction": task.direction,
            "modality": task.modality,
            "baseline": task.baseline,
            "best": task.best,
        }
        for task in tasks.values()
    }


def _render(
    config: RunConfig,
    summary: Mapping[str, Any],
    sections: Sequence[Section],
    index: str,
) -> str:
    # Records hold hostile text (replies, script output). The page gets them as data
    # and sets them as text; what Jinja writes is escaped.
    environment = Environment(
        loader=PackageLoader(*_TEMPLATES),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    assert environment.loader is not None
    assets = {
        name: Markup(environment.loader.get_source(environment, name)[0])
        for name in ("report.css", "report.js", "browser.js")
    }
    return environment.get_template("report.html.j2").render(
        config=config,
        summary=summary,
        sections=sections,
        assets=assets,
        colors={
            name: policy_color(name, list(summary["policies"]))
            for name in summary["policies"]
        },
        index=Markup(index),
        markup=Markup,
    )
