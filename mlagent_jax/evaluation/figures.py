"""Figures of one run: gains by task, training curves, outcomes of actions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlagent_jax.evaluation.comparison import Evaluations
from mlagent_jax.evaluation.drawing import (
    INK,
    LINE,
    SOFT,
    Figure,
    canvas,
    clean,
    finish,
    policy_color,
)
from mlagent_jax.evaluation.scores import bootstrap_mean, by_task
from mlagent_jax.evaluation.tables import SPLIT_NAMES, Table
from mlagent_jax.types import Outcome, Split

OUTCOME_COLORS = {
    Outcome.SCORED: "#1f9d78",
    Outcome.INFO: "#8fb8de",
    Outcome.SCRIPT_ERROR: "#d9603f",
    Outcome.INVALID_SUBMISSION: "#e3b85c",
    Outcome.TIMEOUT: "#8d63c7",
    Outcome.OUT_OF_MEMORY: "#5f5b86",
    Outcome.RESOURCE_LIMIT: "#b07aa1",
    Outcome.INVALID_ACTION: "#a33a4a",
}
_ROW_HEIGHT = 0.34
# Gains beyond this many percent are drawn on a logarithmic scale.
_LINEAR_PERCENT = 20


def gain_by_task(evaluations: Evaluations, folder: Path) -> Figure:
    """Draws mean relative gain with its interval for every task and policy."""
    names = [name for name in evaluations if name != "starter"] or list(evaluations)
    points = {
        (name, task_id): bootstrap_mean([r.relative_gain_percent for r in group])
        for name in names
        for task_id, group in by_task(evaluations[name]).items()
    }
    splits: dict[str, Split] = {
        r.trajectory.task_id: r.split for rs in evaluations.values() for r in rs
    }
    order = sorted(splits, key=lambda task_id: (splits[task_id], task_id))
    # A gap between the held-in tasks, on top, and the held-out ones.
    ys = {t: -i - 0.7 * (splits[t] == "held_out") for i, t in enumerate(order)}
    height = 1.2 + _ROW_HEIGHT * (len(order) + 1)
    with canvas(height=height) as (figure, (axis,)):
        axis.axvline(0.0, color=SOFT, lw=1)
        for i, name in enumerate(names):
            shift = 0.5 * ((len(names) - 1) / 2 - i) / max(len(names), 1)
            for task_id in order:
                point = points.get((name, task_id))
                if point is None:
                    continue
                y, color = ys[task_id] + shift, policy_color(name, names)
                axis.plot(point.ci95, [y, y], color=color, lw=2, alpha=0.45)
                axis.plot([point.mean], [y], "o", ms=5, color=color)
            axis.plot([], [], "o", color=policy_color(name, names), label=name)
        axis.set_xscale("symlog", linthresh=_LINEAR_PERCENT, linscale=1.4)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
        axis.set_yticks(list(ys.values()), list(ys), color=INK)
        axis.set_ylim(min(ys.values()) - 0.6, 0.6)
        axis.set_xlabel("mean relative gain over the starter [%]")
        axis.legend(ncols=6, loc="lower left", bbox_to_anchor=(-0.01, 1.0))
        clean(axis, grid="x")
        table = Table(
            name="gain_by_task",
            title="Mean relative gain of each task in percent",
            columns=("task", "set", *names),
            rows=tuple(
                (
                    task_id,
                    SPLIT_NAMES[splits[task_id]],
                    *(_mean_cell(points.get((name, task_id))) for name in names),
                )
                for task_id in order
            ),
        )
        return finish(
            figure,
            folder,
            name="gain_by_task",
            title="Gain of every task",
            caption="Mean relative gain over the starter on the hidden test part; "
            "bars are 95 % bootstrap intervals over trajectories. Held-in tasks above "
            f"the gap, held-out ones below; logarithmic beyond ±{_LINEAR_PERCENT} %.",
            table=table,
        )


def training_curves(metrics: Sequence[Mapping[str, float]], folder: Path) -> Figure:
    """Draws mean step reward and rates over PPO updates.

    Args:
      metrics: lines of ppo/metrics.jsonl.
      folder: of the files.
    """
    updates = [m["step"] for m in metrics]
    rewards = np.asarray([m["reward_mean"] for m in metrics])
    with canvas(2, height=3.2) as (figure, axes):
        axes[0].plot(updates, rewards, color=LINE, lw=1.4, label="each update")
        axes[0].plot(
            updates, smooth(rewards), color="#1f9d78", lw=2.4, label="smoothed"
        )
        axes[0].set_title("Mean step reward")
        rates = (
            ("valid_action_rate", "valid actions", "#5b8fd6"),
            ("improving_rate", "score improved", "#1f9d78"),
        )
        for key, label, color in rates:
            values = np.asarray([m[key] for m in metrics])
            axes[1].plot(updates, smooth(values), color=color, lw=2.4, label=label)
        axes[1].set_ylim(0, 1.02)
        axes[1].set_title("Share of actions")
        for axis in axes:
            axis.set_xlabel("PPO update")
            axis.legend()
            clean(axis)
        columns = ("step", "reward_mean", *(key for key, _, _ in rates))
        rows = tuple(tuple(f"{m[c]:.4g}" for c in columns) for m in metrics)
        return finish(
            figure,
            folder,
            name="training",
            title="Training",
            caption="Step reward and rates of the actions that PPO sampled, smoothed "
            "with a decay of 0.7.",
            table=Table(
                name="training", title="PPO updates", columns=columns, rows=rows
            ),
        )


def outcome_mix(rollouts: Sequence[Mapping[str, Any]], folder: Path) -> Figure:
    """Draws which share of the sampled actions had which outcome.

    Args:
      rollouts: lines of ppo/rollouts.jsonl, each with "update" and "outcome".
      folder: of the files.
    """
    updates = sorted({r["update"] for r in rollouts})
    position = {update: i for i, update in enumerate(updates)}
    counts = {outcome: np.zeros(len(updates)) for outcome in OUTCOME_COLORS}
    for r in rollouts:
        counts[Outcome(r["outcome"])][position[r["update"]]] += 1
    total = np.maximum(sum(counts.values()), 1)
    present = [o for o in OUTCOME_COLORS if counts[o].any()]
    labels = [o.value.replace("_", " ") for o in present]
    with canvas(height=3.0) as (figure, (axis,)):
        # One update alone would be an area without width.
        step = "mid" if len(updates) > 1 else None
        axis.stackplot(
            updates,
            [counts[o] / total for o in present],
            labels=labels,
            colors=[OUTCOME_COLORS[o] for o in present],
            step=step,
            lw=0,
        )
        axis.set_xlabel("PPO update")
        axis.set_ylabel("share of actions")
        axis.set_ylim(0, 1)
        axis.margins(x=0)
        handles, names = axis.get_legend_handles_labels()
        axis.legend(
            handles[::-1], names[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5)
        )
        clean(axis)
        rows = tuple(
            (str(update), *(f"{counts[o][i] / total[i]:.4f}" for o in present))
            for i, update in enumerate(updates)
        )
        return finish(
            figure,
            folder,
            name="outcomes",
            title="What actions came to",
            caption="Outcome of every action that PPO sampled, by update.",
            table=Table(
                name="outcomes",
                title="Share of outcomes by update",
                columns=("update", *labels),
                rows=rows,
            ),
        )


def smooth(values: np.ndarray, decay: float = 0.7) -> np.ndarray:
    """Returns the exponential moving average that starts at the first value."""
    smoothed = np.array(values, dtype=np.float64)
    for i in range(1, len(smoothed)):
        smoothed[i] = decay * smoothed[i - 1] + (1 - decay) * smoothed[i]
    return smoothed


def _mean_cell(point: Any) -> str:
    if point is None:
        return "–"
    low, high = point.ci95
    return f"{point.mean:+.1f} [{low:+.1f}, {high:+.1f}]"
