"""Figures in the form of the paper's, published and measured side by side.

The left panel always shows what the paper printed, the right one what this run
measured on its own tasks. The tasks differ, so the axes are not shared.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import ticker

from mlagent_jax.evaluation.comparison import Evaluations
from mlagent_jax.evaluation.costs import PhaseCost
from mlagent_jax.evaluation.drawing import (
    HELD_IN,
    INK,
    LINE,
    SOFT,
    SPLIT_COLORS,
    SPLIT_LABELS,
    Figure,
    canvas,
    clean,
    finish,
    policy_color,
)
from mlagent_jax.evaluation.paper import MEASURED, PUBLISHED, Published
from mlagent_jax.evaluation.scores import by_task, stratified_mean
from mlagent_jax.evaluation.summary import SPLITS
from mlagent_jax.evaluation.tables import SPLIT_NAMES, Table

# Bars of figure 3 beyond these are cut, with the number written beside them.
_RATIO_LIMITS = (-2.0, 3.0)
_SECONDS_AN_HOUR = 3600.0
_OTHERS_CAPTION = (
    "The tasks of this run are not the paper's; compare shapes, not heights."
)


def figure_3(
    published: Published, evaluations: Evaluations, folder: Path
) -> Figure | None:
    """Draws gains of tree search divided by those of the plain policy.

    Returns:
      None if the run evaluated no tree search over a policy that it also evaluated.
    """
    pairs = [
        (name, name.removeprefix("tree:"))
        for name in evaluations
        if name.startswith("tree:") and name.removeprefix("tree:") in evaluations
    ]
    if not pairs:
        return None
    theirs = {
        task: dict(zip(published.figure_3["agents"], gains, strict=True))
        for task, gains in published.figure_3["gains"].items()
    }
    ours = _gain_by_task_of_pairs(evaluations, pairs)
    num_rows = max(len(theirs), len(ours))
    with canvas(2, height=1.5 + 0.4 * num_rows) as (figure, axes):
        _ratio_bars(
            axes[0], theirs, "gain ÷ ML-Agent's gain", _RATIO_LIMITS, "upper right"
        )
        axes[0].axvline(1.0, color=HELD_IN, lw=1.5, ls=":")
        axes[0].set_title(f"Tree search (AIDE), {PUBLISHED}")
        _ratio_bars(axes[1], ours, "mean relative gain [%]", None, "lower left")
        axes[1].set_title(f"Tree search, {MEASURED}")
        rows = [
            (PUBLISHED, task, agent, "ratio", "–" if x is None else f"{x:g}")
            for task, gains in theirs.items()
            for agent, x in gains.items()
        ]
        rows += [
            (MEASURED, task, name, "gain %", f"{x:+.2f}")
            for task, gains in ours.items()
            for name, x in gains.items()
            if x is not None
        ]
        return finish(
            figure,
            folder,
            name="figure3",
            title="Figure 3: tree search against the policy itself",
            caption="Left, the paper: gains of AIDE with larger models, divided by "
            "ML-Agent's (dotted line: equal), read off a radar chart; tasks not "
            "listed lie between 0.7 and 1. Right, this run: greedy tree search over a "
            "policy and the same policy step by step, with the same steps and time. "
            + _OTHERS_CAPTION,
            table=Table(
                name="figure3",
                title="Figure 3: tree search",
                columns=("source", "task", "agent", "unit", "value"),
                rows=tuple(rows),
                note=published.source,
            ),
        )


def figure_4(
    published: Published,
    probes: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    folder: Path,
) -> Figure:
    """Draws mean relative gain against training time.

    Args:
      published: the paper's curves.
      probes: lines of ppo/probes.jsonl.
      summary: of the run, for the policies that are lines in the paper's figure.
      folder: of the files.
    """
    rows: list[tuple[str, ...]] = []
    with canvas(2, height=3.9) as (figure, axes):
        curves = published.figure_4
        for kind, style, marker in (
            ("step_wise", "-", "o"),
            ("episode_wise", "--", "s"),
        ):
            hours = curves[kind]["hours"]
            for split, color in SPLIT_COLORS.items():
                label = f"{kind.replace('_', '-')}, {SPLIT_NAMES[split]}"
                values = curves[kind][split]
                axes[0].plot(
                    hours, values, style, marker=marker, ms=4, lw=2, color=color,
                    label=label,
                )  # fmt: skip
                per_point = curves[kind]["updates_between_points"]
                rows += [
                    (PUBLISHED, label, str(i * per_point), f"{h:g}", f"{v:g}", "")
                    for i, (h, v) in enumerate(zip(hours, values, strict=True))
                ]
        strongest = curves["flat_baselines"]["deepseek-r1"]
        for split, color in SPLIT_COLORS.items():
            axes[0].axhline(strongest[split], color=color, lw=1, ls=":", alpha=0.8)
        axes[0].text(
            11, strongest["held_in"] + 0.3, "DeepSeek-R1", color=SOFT, fontsize=8,
            ha="right",
        )  # fmt: skip
        axes[0].set_title(f"ML-Agent 7B, {PUBLISHED}")
        axes[0].set_xlabel("GPU hours")
        axes[0].set_ylabel("mean relative gain [%]")
        for split, color in SPLIT_COLORS.items():
            curve = probe_curve(probes, split)
            if not curve:
                continue
            xs = [p["hours"] * 60 for p in curve]
            means = np.asarray([p["mean"] for p in curve])
            errors = np.asarray([p["error"] for p in curve])
            axes[1].fill_between(
                xs, means - errors, means + errors, color=color, alpha=0.15, lw=0
            )
            axes[1].plot(
                xs, means, "-o", ms=4, lw=2, color=color, label=SPLIT_LABELS[split]
            )
            rows += [
                (
                    MEASURED,
                    f"step-wise, {SPLIT_NAMES[split]}",
                    str(p["update"]),
                    f"{p['hours']:.4f}",
                    f"{p['mean']:.3f}",
                    f"{p['error']:.3f}",
                )
                for p in curve
            ]
        _update_axis(axes[1], probes)
        axes[1].axhline(0.0, color=LINE, lw=1)
        # Above the numbers of updates.
        axes[1].set_title(f"{summary['run']}, {MEASURED}", pad=20)
        axes[1].set_xlabel("training time [minutes] (updates in grey)")
        axes[1].set_ylabel("mean relative gain [%]")
        for axis in axes:
            axis.legend()
            clean(axis)
        return finish(
            figure,
            folder,
            name="figure4",
            title="Figure 4: gain during reinforcement learning",
            caption="Left, the paper: approximate readings; dotted lines are the "
            "strongest baseline. Right, this run: probes of whole trajectories, bands "
            "are standard errors over repeated trajectories. " + _OTHERS_CAPTION,
            table=Table(
                name="figure4",
                title="Figure 4: mean relative gain in percent",
                columns=("source", "curve", "update", "hours", "gain %", "error"),
                rows=tuple(rows),
                note=published.source,
            ),
        )


def cost_figure(
    published: Published,
    ledger: Sequence[PhaseCost],
    summary: Mapping[str, Any],
    folder: Path,
) -> Figure:
    """Draws gain against money for a trajectory, and where the time of a run went."""
    rows: list[tuple[str, ...]] = []
    names = [c.policy for c in ledger if c.phase == "evaluate"]
    with canvas(2, height=3.9) as (figure, axes):
        for cost in ledger:
            if cost.phase != "evaluate" or cost.policy == "starter":
                continue
            if cost.usd is None or not cost.num_trajectories:
                continue
            money = max(1000 * cost.usd / cost.num_trajectories, 1e-4)
            for split, marker in zip(SPLITS, "os", strict=True):
                numbers = summary["policies"][cost.policy].get(split)
                if numbers is None:
                    continue
                gain = numbers["mean_relative_gain_percent"]
                color = policy_color(cost.policy, names)
                low, high = numbers["ci95"]
                axes[0].plot([money, money], [low, high], color=color, lw=2, alpha=0.4)
                axes[0].plot(
                    [money], [gain], marker, ms=7, color=color,
                    mfc=color if split == "held_in" else "none",
                )  # fmt: skip
                rows.append(
                    (
                        MEASURED,
                        cost.policy,
                        SPLIT_NAMES[split],
                        f"{money:.3g}",
                        f"{gain:+.2f}",
                    )
                )
            axes[0].plot(
                [], [], "o", color=policy_color(cost.policy, names), label=cost.policy
            )
        headline = published.version_2["mean_performance_gain_percent"]
        below = published.version_2["inference_cost_per_trajectory_usd_below"]
        rows.append(
            (
                PUBLISHED,
                "ml-agent",
                "all",
                f"< {1000 * below:g}",
                f"{headline['ml-agent']:+.2f}",
            )
        )
        axes[0].set_xscale("log")
        plain = ticker.FuncFormatter(lambda value, _: f"{value:g}")
        axes[0].xaxis.set_major_formatter(plain)
        axes[0].xaxis.set_minor_formatter(plain)
        axes[0].axhline(0.0, color=LINE, lw=1)
        axes[0].set_xlabel(
            "USD for 1,000 trajectories (filled: held-in, hollow: held-out)"
        )
        axes[0].set_ylabel("mean relative gain [%]")
        axes[0].set_title(f"Gain against money, {MEASURED}")
        if any(source == MEASURED for source, *_ in rows):
            axes[0].legend()
        _phase_bars(axes[1], ledger)
        for axis, grid in zip(axes, ("y", "x"), strict=True):
            clean(axis, grid)
        return finish(
            figure,
            folder,
            name="costs",
            title="What it costs",
            caption="Left: gain against money at the configured prices (the paper's "
            "second version reports "
            f"{headline['ml-agent']:g} % at under {below:g} USD a trajectory, "
            "inference only, on its own tasks). Right: seconds of every phase, "
            "training and data included.",
            table=Table(
                name="costs",
                title="Gain and money of a thousand trajectories",
                columns=("source", "policy", "tasks", "USD for 1,000", "gain %"),
                rows=tuple(rows),
                note=published.version_2["source"],
            ),
        )


def probe_curve(
    probes: Sequence[Mapping[str, Any]], split: str
) -> list[dict[str, float]]:
    """Returns update, hours, mean gain and standard error of every probe.

    The error is over repeated trajectories, with the tasks kept fixed.
    """
    by_update: dict[int, list[Mapping[str, Any]]] = {}
    for probe in probes:
        if probe["split"] == split:
            by_update.setdefault(probe["update"], []).append(probe)
    curve: list[dict[str, float]] = []
    for update in sorted(by_update):
        group = by_update[update]
        tasks: dict[str, list[float]] = {}
        for probe in group:
            tasks.setdefault(probe["task"], []).append(probe["relative_gain_percent"])
        variances = [np.var(v, ddof=1) / len(v) for v in tasks.values() if len(v) > 1]
        curve.append(
            {
                "update": update,
                "hours": group[0]["train_seconds"] / _SECONDS_AN_HOUR,
                "mean": float(np.mean([np.mean(v) for v in tasks.values()])),
                "error": float(np.sqrt(np.sum(variances)) / max(len(tasks), 1)),
            }
        )
    return curve


def _gain_by_task_of_pairs(
    evaluations: Evaluations, pairs: Sequence[tuple[str, str]]
) -> dict[str, dict[str, float | None]]:
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    gains: dict[str, dict[str, float | None]] = {}
    for name in names:
        for task_id, group in by_task(evaluations[name]).items():
            mean = stratified_mean({"": [r.relative_gain_percent for r in group]}).mean
            gains.setdefault(task_id, dict.fromkeys(names))[name] = mean
    return gains


def _ratio_bars(
    axis: Any,
    groups: Mapping[str, Mapping[str, float | None]],
    label: str,
    limits: tuple[float, float] | None,
    legend: str,
) -> None:
    """Draws groups of horizontal bars; those beyond the limits are cut and labelled."""
    names = list(next(iter(groups.values())))
    height = 0.75 / len(names)
    low, high = limits or (-np.inf, np.inf)
    for i, name in enumerate(names):
        color = policy_color(name, names)
        for row, values in enumerate(groups.values()):
            value = values[name]
            if value is None:
                continue
            y = row + (i - (len(names) - 1) / 2) * height
            shown = float(np.clip(value, low, high))
            axis.barh(y, shown, height * 0.9, color=color, lw=0)
            if shown != value:
                side = "right" if value > 0 else "left"
                axis.text(
                    shown + 0.05, y, f"{value:g}", va="center", fontsize=7,
                    color="#ffffff" if side == "left" else INK,
                )  # fmt: skip
        axis.barh([0], [0], color=color, label=name)
    axis.set_yticks(range(len(groups)), [_short(t) for t in groups], color=INK)
    axis.invert_yaxis()
    axis.axvline(0.0, color=SOFT, lw=1)
    if limits is None:
        axis.set_xscale("symlog", linthresh=20, linscale=1.4)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
    axis.set_xlabel(label)
    axis.legend(loc=legend, fontsize=8)
    clean(axis, grid="x")


def _short(task: str) -> str:
    """Returns the first words of a long task name."""
    words = task.split("-")
    return task if len(task) <= 18 else "-".join(words[:2])


def _update_axis(axis: Any, probes: Sequence[Mapping[str, Any]]) -> None:
    """Writes the number of updates above the points of the time axis."""
    seen = {p["update"]: p["train_seconds"] / 60 for p in probes}
    for update, minutes in seen.items():
        axis.text(
            minutes, 1.0, str(update), color=SOFT, fontsize=7, ha="center", va="bottom",
            transform=axis.get_xaxis_transform(),
        )  # fmt: skip


def _phase_bars(axis: Any, ledger: Sequence[PhaseCost]) -> None:
    phases: dict[str, float] = {}
    scripts: dict[str, float] = {}
    for cost in ledger:
        name = cost.phase
        phases[name] = phases.get(name, 0.0) + (cost.wall_s or 0.0)
        scripts[name] = scripts.get(name, 0.0) + (cost.script_s or 0.0)
    rows = np.arange(len(phases))
    axis.barh(rows - 0.18, list(phases.values()), 0.34, color=HELD_IN, label="elapsed")
    axis.barh(
        rows + 0.18, list(scripts.values()), 0.34, color="#d7973b",
        label="inside scripts (all workers)",
    )  # fmt: skip
    axis.set_yticks(rows, list(phases), color=INK)
    axis.invert_yaxis()
    axis.set_xlabel("seconds")
    axis.set_title("Seconds by phase")
    axis.legend()
