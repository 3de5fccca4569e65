"""Figures of ablations: a row of points a variant, and curves where there are any."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlagent_jax.evaluation.ablation import (
    Ablation,
    Variant,
    ablation_summaries,
    ablation_table,
)
from mlagent_jax.evaluation.drawing import (
    INK,
    LINE,
    SOFT,
    SPLIT_COLORS,
    Figure,
    canvas,
    clean,
    finish,
)
from mlagent_jax.evaluation.tables import SPLIT_NAMES
from mlagent_jax.types import Split

_MAX_PANELS = 4
_COLOR = "#1f9d78"
_CURVE_STYLES = ("-", "--", ":", "-.")


def ablation_figure(ablation: Ablation, folder: Path) -> Figure:
    """Draws the first metrics of a comparison, a panel each, every seed a dot.

    Variants that were not run yet have no row; the table says so.
    """
    metrics = list(ablation.metrics)[:_MAX_PANELS]
    summaries = ablation_summaries(ablation)
    variants = ablation.variants_with_runs()
    names = [variant.name for variant in variants]
    height = 1.4 + 0.42 * len(names)
    with canvas(max(len(metrics), 1), height=height) as (figure, axes):
        for panel, (axis, metric) in enumerate(zip(axes, metrics, strict=False)):
            for row, variant in enumerate(variants):
                values = [r.values[metric] for r in variant.runs if metric in r.values]
                summary = summaries[variant.name].get(metric)
                if summary is None:
                    continue
                is_base = variant is ablation.variants[0]
                color = SOFT if is_base else _COLOR
                axis.plot(summary.ci95, [row, row], color=color, lw=2.5, alpha=0.4)
                axis.plot(
                    values, [row] * len(values), "o", ms=3, color=color, alpha=0.6
                )
                axis.plot([summary.mean], [row], "D", ms=6, color=color)
                if is_base:
                    axis.axvline(summary.mean, color=SOFT, lw=1, ls=":", zorder=0)
            axis.set_yticks(
                range(len(names)), names if panel == 0 else [""] * len(names)
            )
            axis.tick_params(axis="y", colors=INK)
            axis.set_ylim(len(names) - 0.4, -0.6)
            _look_at_values(axis, variants, metric)
            axis.set_title(ablation.metrics[metric])
            clean(axis, grid="x")
        return finish(
            figure,
            folder,
            name=f"ablation_{ablation.name}",
            title=ablation.title,
            caption="Diamonds: mean over seeds with its 95 % interval (Student's t), "
            "which may go on beyond the panel; dots: single seeds; grey: what the "
            "others are compared with. “Best”: the version of a trajectory that its "
            f"own feedback ranks first. {ablation.note}".strip(),
            table=ablation_table(ablation),
        )


def _look_at_values(axis: Any, variants: Sequence[Variant], metric: str) -> None:
    """Fits a panel to the seeds: intervals of two are many times as wide."""
    values = [r.values[metric] for v in variants for r in v.runs if metric in r.values]
    if values and max(values) > min(values):
        margin = 0.3 * (max(values) - min(values))
        axis.set_xlim(min(values) - margin, max(values) + margin)


def curve_figure(ablation: Ablation, folder: Path) -> Figure | None:
    """Draws gain against time and executions; None without two curves to compare."""
    variants = [v for v in ablation.variants if any(run.curve for run in v.runs)]
    if len(variants) < 2:
        return None
    with canvas(2, height=3.6) as (figure, axes):
        for axis, key, label in (
            (axes[0], "train_seconds", "training time [s]"),
            (axes[1], "num_executions", "script executions"),
        ):
            for i, variant in enumerate(variants):
                style = _CURVE_STYLES[i % len(_CURVE_STYLES)]
                for split, color in SPLIT_COLORS.items():
                    _mean_curve(axis, variant, key, split, style=style, color=color)
            axis.axhline(0.0, color=LINE, lw=1)
            axis.set_xlabel(label)
            clean(axis)
        axes[0].set_ylabel("mean relative gain [%]")
        axes[0].legend()
        return finish(
            figure,
            folder,
            name=f"ablation_{ablation.name}_curves",
            title=f"{ablation.title}: during training",
            caption="Mean over seeds at each evaluation, in the form of Figure 4.",
            table=ablation_table(ablation),
        )


def _mean_curve(
    axis: Any, variant: Variant, key: str, split: Split, *, style: str, color: str
) -> None:
    """Draws the mean over the seeds of a variant, point by point."""
    curves = [
        [
            (getattr(p, key), p.gain_percent[split])
            for p in run.curve
            if split in p.gain_percent
        ]
        for run in variant.runs
    ]
    curves = [c for c in curves if c]
    if not curves:
        return
    length = min(map(len, curves))
    points = np.asarray([c[:length] for c in curves], dtype=np.float64).mean(axis=0)
    axis.plot(
        points[:, 0], points[:, 1], style, marker="o", ms=3.5, lw=2, color=color,
        label=f"{variant.name}, {SPLIT_NAMES[split]}",
    )  # fmt: skip
