"""From the stages of a grid to its tables: what each run measured, by comparison."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from launch.grid_plan import PlannedRun
from mlagent_jax.config import Comparison, Grid, RunConfig
from mlagent_jax.evaluation import scores
from mlagent_jax.evaluation.ablation import (
    Ablation,
    AblationRun,
    CurvePoint,
    Variant,
)
from mlagent_jax.evaluation.comparison import Version, gains_by_task
from mlagent_jax.evaluation.summary import SPLITS, load_evaluations, load_fresh_steps
from mlagent_jax.train.metrics import read_metrics
from mlagent_jax.types import Split

_GAINS = {
    "gain_held_in": "held-in gain %",
    "gain_held_out": "held-out gain %",
}
_VALUE_NAMES: dict[Version, str] = {"final": "gain", "selected": "best"}
_BEST = {
    "best_held_in": "held-in gain %, best",
    "best_held_out": "held-out gain %, best",
}
_COLUMNS = {
    "end": _GAINS
    | _BEST
    | {
        "valid_held_in": "valid actions %, held-in",
        "step_reward": "step reward, fresh states",
        "executions": "training executions",
        "seconds": "training s",
    },
    "seconds": _GAINS | {"seconds": "training s"},
    "executions": _GAINS | {"executions": "training executions"},
}


def measure_run(run: PlannedRun) -> AblationRun:
    """Returns what one finished run measured.

    Raises:
      DataError: its records are missing or damaged.
    """
    folder, policy = run.nodes[-1].folder, run.arm.policy
    records = load_evaluations(folder, [policy])[policy]
    values: dict[str, float] = {}
    gains: dict[Version, dict[Split, dict[str, tuple[float, ...]]]] = {
        "final": {},
        "selected": {},
    }
    for split in SPLITS:
        of_split = [r for r in records if r.split == split]
        if of_split:
            for version, name in _VALUE_NAMES.items():
                by_task = gains_by_task(of_split, split, version)
                gains[version][split] = {t: tuple(g) for t, g in by_task.items()}
                values[f"{name}_{split}"] = scores.stratified_mean(by_task).mean
            values[f"valid_{split}"] = 100 * scores.valid_action_rate(of_split)
    fresh = load_fresh_steps(folder, [policy]).get(policy, [])
    if fresh:
        values["step_reward"] = float(np.mean([r.reward for r in fresh]))
    curve: tuple[CurvePoint, ...] = ()
    if policy == "ppo":
        spent = spent_by_update(folder / "ppo", run.config)
        values["seconds"], values["executions"] = spent[-1]
        curve = read_curve(folder / "ppo" / "probes.jsonl", spent)
    return AblationRun(
        seed=run.seed,
        values=values,
        gains=gains["final"],
        selected_gains=gains["selected"],
        curve=curve,
    )


def make_ablation(
    grid: Grid, comparison: Comparison, measured: Mapping[str, Sequence[AblationRun]]
) -> Ablation:
    """Returns the table of one comparison.

    Args:
      grid: of the runs.
      comparison: which arms, and at which moment of their training.
      measured: arm -> its finished runs; missing ones are left out.
    """
    runs = {name: list(measured.get(name, ())) for name in comparison.arms}
    note = comparison.note
    if comparison.at != "end":
        runs = _at_equal_cost(runs, comparison.at)
        note = f"{note} {_COST_NOTES[comparison.at]}".strip()
    num_missing = sum(len(grid.seeds) - len(found) for found in runs.values())
    if num_missing:
        note = f"{note} {num_missing} runs are missing.".strip()
    return Ablation(
        name=comparison.name,
        title=comparison.title,
        metrics=_COLUMNS[comparison.at],
        variants=tuple(
            Variant(name=name, runs=tuple(found)) for name, found in runs.items()
        ),
        note=note,
    )


_COST_NOTES = {
    "seconds": "Each row is the last evaluation on the side of training within the "
    "time that the cheapest arm took in all; seconds count scripts that the cache "
    "answered at the time of their first run, spread over the workers.",
    "executions": "Each row is the last evaluation on the side of training within the "
    "script executions that the cheapest arm took in all.",
}


def _at_equal_cost(
    runs: Mapping[str, list[AblationRun]], cost: str
) -> dict[str, list[AblationRun]]:
    """Returns the runs as they stood when the cheapest one of their seed was done."""
    found: dict[str, list[AblationRun]] = {name: [] for name in runs}
    for seed in sorted({run.seed for of_arm in runs.values() for run in of_arm}):
        of_seed = {
            name: run for name, of_arm in runs.items() for run in of_arm
            if run.seed == seed
        }  # fmt: skip
        if len(of_seed) < len(runs):
            continue  # without its partners nothing says how much is equal
        budget = min(run.values[cost] for run in of_seed.values())
        for name, run in of_seed.items():
            reached = [p for p in run.curve if _cost(p, cost) <= budget * (1 + 1e-9)]
            if reached:
                last = reached[-1]
                values = {f"gain_{s}": g for s, g in last.gain_percent.items()}
                values[cost] = _cost(last, cost)
                found[name].append(
                    AblationRun(seed=seed, values=values, curve=run.curve)
                )
    return found


def _cost(point: CurvePoint, cost: str) -> float:
    return point.train_seconds if cost == "seconds" else float(point.num_executions)


def spent_by_update(folder: Path, config: RunConfig) -> list[tuple[float, float]]:
    """Returns (seconds, executions) before each update, and after the last.

    Scoring counts in full, though on one host it runs while the last scripts do.
    """
    spent = [(0.0, 0.0)]
    for metrics in read_metrics(folder):
        scripts_s = metrics["script_all_s"] / config.env.num_workers
        parts = (
            metrics["sample_s"] + scripts_s,
            metrics["score_s"] + metrics["update_s"],
        )
        update_s = max(parts) if config.ppo.max_staleness else sum(parts)
        seconds, executions = spent[-1]
        spent.append((seconds + update_s, executions + metrics["num_executions"]))
    return spent


def read_curve(
    path: Path, spent: Sequence[tuple[float, float]]
) -> tuple[CurvePoint, ...]:
    """Returns the evaluations on the side of training, by what they had cost."""
    if not path.exists():
        return ()
    gains: dict[int, dict[str, dict[str, list[float]]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        of_split = gains.setdefault(record["update"], {}).setdefault(
            record["split"], {}
        )
        of_task = of_split.setdefault(record["task"], [])
        of_task.append(record["relative_gain_percent"])
    return tuple(
        CurvePoint(
            update=update,
            train_seconds=spent[update][0],
            num_executions=int(spent[update][1]),
            gain_percent={
                split: float(np.mean([np.mean(values) for values in of_task.values()]))
                for split, of_task in splits.items()
            },
        )
        for update, splits in sorted(gains.items())
    )
