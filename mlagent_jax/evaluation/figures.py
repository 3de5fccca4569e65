"""Figures of the report, drawn with matplotlib without a display."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen before)
import numpy as np  # noqa: E402

from mlagent_jax.types import Outcome  # noqa: E402

SPLIT_COLORS = {"held_in": "#1f6f8b", "held_out": "#d1495b"}
SPLIT_LABELS = {"held_in": "held-in tasks", "held_out": "held-out tasks"}
OUTCOME_COLORS = {
    Outcome.SCORED: "#3a7d44",
    Outcome.INFO: "#8ab6d6",
    Outcome.SCRIPT_ERROR: "#e07a5f",
    Outcome.INVALID_SUBMISSION: "#f2cc8f",
    Outcome.TIMEOUT: "#9a8c98",
    Outcome.OUT_OF_MEMORY: "#6d6875",
    Outcome.RESOURCE_LIMIT: "#b5838d",
    Outcome.INVALID_ACTION: "#9b2226",
}


def gain_over_updates(probes: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the paper's Figure 4: mean relative gain against training time.

    Args:
      probes: lines of ppo/probes.jsonl.
      path: PNG to write.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.4), sharey=True)
    for axis, key, label in (
        (axes[0], "update", "PPO update"),
        (axes[1], "train_seconds", "training time [s]"),
    ):
        for split, color in SPLIT_COLORS.items():
            xs, means, errors = _probe_curve(probes, split, key)
            if not xs:
                continue
            axis.errorbar(
                xs, means, errors, marker="o", ms=4, lw=1.6, capsize=2, color=color,
                label=SPLIT_LABELS[split],
            )  # fmt: skip
        axis.axhline(0.0, color="#888", lw=0.8, ls=":")
        axis.set_xlabel(label)
        _clean(axis)
    axes[0].set_ylabel("mean relative gain [%]")
    axes[0].legend(frameon=False)
    _save(figure, path)


def training_curves(metrics: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draws mean step reward and rates over PPO updates.

    Args:
      metrics: lines of ppo/metrics.jsonl.
      path: PNG to write.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.2))
    updates = [m["step"] for m in metrics]
    rewards = np.asarray([m["reward_mean"] for m in metrics])
    axes[0].plot(updates, rewards, color="#bbb", lw=1, label="per update")
    axes[0].plot(updates, _smooth(rewards), color="#1f6f8b", lw=2, label="smoothed")
    axes[0].set_ylabel("mean step reward")
    axes[0].legend(frameon=False)
    for name, color in (
        ("valid_action_rate", "#3a7d44"),
        ("improving_rate", "#1f6f8b"),
    ):
        values = np.asarray([m[name] for m in metrics])
        axes[1].plot(updates, _smooth(values), color=color, lw=2, label=name)
    axes[1].set_ylim(0, 1.02)
    axes[1].legend(frameon=False)
    for axis in axes:
        axis.set_xlabel("PPO update")
        _clean(axis)
    _save(figure, path)


def outcome_mix(rollouts: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws which share of the sampled actions had which outcome.

    Args:
      rollouts: lines of ppo/rollouts.jsonl, each with "update" and "outcome".
      path: PNG to write.
    """
    updates = sorted({r["update"] for r in rollouts})
    counts = {outcome: np.zeros(len(updates)) for outcome in OUTCOME_COLORS}
    position = {update: i for i, update in enumerate(updates)}
    for r in rollouts:
        counts[Outcome(r["outcome"])][position[r["update"]]] += 1
    total = np.maximum(sum(counts.values()), 1)
    present = [o for o in OUTCOME_COLORS if counts[o].any()]
    figure, axis = plt.subplots(figsize=(9.6, 3.0))
    axis.stackplot(
        updates,
        [counts[o] / total for o in present],
        labels=[o.value.replace("_", " ") for o in present],
        colors=[OUTCOME_COLORS[o] for o in present],
    )
    axis.set_xlabel("PPO update")
    axis.set_ylabel("share of actions")
    axis.set_ylim(0, 1)
    axis.margins(x=0)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _clean(axis)
    _save(figure, path)


def gain_by_task(summary: Mapping[str, Any], path: Path) -> None:
    """Draws each task's mean relative gain for every policy as grouped bars."""
    task_ids = [t for t, numbers in summary["tasks"].items() if numbers]
    splits = {t: next(iter(summary["tasks"][t].values()))["split"] for t in task_ids}
    task_ids.sort(key=lambda t: (splits[t], t))
    policies = [name for name in summary["policies"] if name != "starter"]
    figure, axis = plt.subplots(figsize=(9.6, 3.6))
    width = 0.8 / max(len(policies), 1)
    palette = ["#c9ada7", "#8ab6d6", "#1f6f8b", "#3a7d44", "#d1495b"]
    for i, name in enumerate(policies):
        gains = [
            summary["tasks"][t].get(name, {}).get("relative_gain_percent", np.nan)
            for t in task_ids
        ]
        xs = np.arange(len(task_ids)) + (i - (len(policies) - 1) / 2) * width
        axis.bar(xs, gains, width, label=name, color=palette[i % len(palette)])
    num_held_in = sum(s == "held_in" for s in splits.values())
    axis.axvline(num_held_in - 0.5, color="#555", lw=0.8, ls="--")
    axis.axhline(0.0, color="#555", lw=0.8)
    axis.set_xticks(np.arange(len(task_ids)), task_ids, rotation=35, ha="right")
    axis.set_ylabel("mean relative gain [%]")
    # A few tasks with large gains must not hide the others.
    axis.set_yscale("symlog", linthresh=10)
    axis.legend(frameon=False, ncols=len(policies))
    _clean(axis)
    _save(figure, path)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics file, without a half-written last one."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _probe_curve(
    probes: Sequence[Mapping[str, Any]], split: str, key: str
) -> tuple[list[float], list[float], list[float]]:
    by_update: dict[int, list[Mapping[str, Any]]] = {}
    for probe in probes:
        if probe["split"] == split:
            by_update.setdefault(probe["update"], []).append(probe)
    xs, means, errors = [], [], []
    for update in sorted(by_update):
        group = by_update[update]
        tasks: dict[str, list[float]] = {}
        for probe in group:
            tasks.setdefault(probe["task"], []).append(probe["relative_gain_percent"])
        xs.append(float(group[0][key]))
        means.append(float(np.mean([np.mean(v) for v in tasks.values()])))
        # Standard error over repeated trajectories with the tasks kept fixed.
        variances = [np.var(v, ddof=1) / len(v) for v in tasks.values() if len(v) > 1]
        errors.append(float(np.sqrt(np.sum(variances)) / max(len(tasks), 1)))
    return xs, means, errors


def _smooth(values: np.ndarray, decay: float = 0.7) -> np.ndarray:
    smoothed = np.array(values, dtype=np.float64)
    for i in range(1, len(smoothed)):
        smoothed[i] = decay * smoothed[i - 1] + (1 - decay) * smoothed[i]
    return smoothed


def _clean(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#eee")
    axis.set_axisbelow(True)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
