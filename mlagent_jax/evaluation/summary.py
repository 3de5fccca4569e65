"""The numbers of a finished run as one JSON object; tables and pages read it.

Everything in it is computed from records of the run directory. A quantity whose
records are missing is left out rather than guessed.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlagent_jax.config import RewardConfig, RunConfig
from mlagent_jax.errors import DataError
from mlagent_jax.evaluation import scores
from mlagent_jax.evaluation.comparison import Comparison, compare_all
from mlagent_jax.evaluation.costs import PhaseCost
from mlagent_jax.evaluation.records import (
    EvalRecord,
    FreshStepRecord,
    read_records,
    records_path,
)
from mlagent_jax.types import Split, Task, to_json

SPLITS: tuple[Split, ...] = ("held_in", "held_out")


def load_evaluations(
    workdir: Path, names: Sequence[str]
) -> dict[str, list[EvalRecord]]:
    """Returns policy -> its evaluation records, for the policies that have any.

    Raises:
      DataError: no policy was evaluated, or a record is damaged.
    """
    found = {}
    for name in names:
        records = read_records(records_path(workdir, name), EvalRecord)
        if records:
            found[name] = records
    if not found:
        raise DataError(f"{workdir / 'eval'} holds no records: run launch.evaluate")
    return found


def load_fresh_steps(
    workdir: Path, names: Sequence[str]
) -> dict[str, list[FreshStepRecord]]:
    """Returns policy -> its records on fresh states, for those that have any."""
    found = {}
    for name in names:
        path = records_path(workdir, name).with_suffix(".fresh.jsonl")
        records = read_records(path, FreshStepRecord)
        if records:
            found[name] = records
    return found


def make_summary(
    config: RunConfig,
    workdir: Path,
    tasks: Mapping[str, Task],
    evaluations: Mapping[str, Sequence[EvalRecord]],
    fresh: Mapping[str, Sequence[FreshStepRecord]],
    ledger: Sequence[PhaseCost],
) -> dict[str, Any]:
    """Returns the content of summary.json.

    Args:
      config: of the run.
      workdir: where stages.json, written by launch.pipeline, may lie.
      tasks: task id -> task.
      evaluations: policy -> records.
      fresh: policy -> records on fresh states.
      ledger: what every phase used.
    """
    stages_path = workdir / "stages.json"
    stages = json.loads(stages_path.read_text()) if stages_path.exists() else {}
    summary: dict[str, Any] = {
        "run": config.name,
        "seed": config.seed,
        "elapsed_s": round(sum(stages.values()), 1),
        "stages": stages,
        "isolation": _isolation(evaluations),
        "reward_preset": _reward_name(config.ppo.reward),
        "trajectories_per_task": config.eval.trajectories_per_task,
        "budget": {
            "max_steps": config.eval.max_steps,
            "max_time_s": config.env.max_time_s,
        },
        "policies": {
            name: {
                split: _split_numbers(records, split)
                for split in SPLITS
                if any(r.split == split for r in records)
            }
            for name, records in evaluations.items()
        },
        "fresh_states": {
            name: _fresh_numbers(records) for name, records in fresh.items()
        },
        "tasks": {
            task_id: _task_numbers(tasks[task_id], evaluations)
            for task_id in sorted(tasks)
        },
    }
    summary["comparisons"] = [_comparison_numbers(c) for c in compare_all(evaluations)]
    summary["costs"] = [{**to_json(cost), "usd": cost.usd} for cost in ledger]
    if "sft" in fresh and "ppo" in fresh:
        difference = scores.paired_difference(fresh["ppo"], fresh["sft"])
        summary["ppo_minus_sft_step_reward"] = {
            "mean": difference.mean,
            "ci95": list(difference.ci95),
            "num_states": difference.num,
        }
    return summary


def _reward_name(cfg: RewardConfig) -> str:
    """Returns the preset, and what about it every reader must know."""
    if cfg.gap_weight == 0:
        return cfg.preset
    return (
        f"{cfg.preset} with a gap penalty, for which training read the test labels of "
        "held-in tasks: their test scores are no longer independent of it"
    )


def _split_numbers(records: Sequence[EvalRecord], split: Split) -> dict[str, Any]:
    records = [r for r in records if r.split == split]
    groups = scores.by_task(records)
    last = scores.stratified_mean(
        {task: [r.relative_gain_percent for r in rs] for task, rs in groups.items()}
    )
    selected = scores.stratified_mean(
        {task: [r.selected_gain_percent for r in rs] for task, rs in groups.items()}
    )
    task_gains = [
        float(np.mean([r.relative_gain_percent for r in rs])) for rs in groups.values()
    ]
    signs = scores.sign_test(task_gains)
    num_steps = sum(len(r.trajectory.steps) for r in records)
    return {
        "mean_relative_gain_percent": last.mean,
        "ci95": list(last.ci95),
        "median_relative_gain_percent": float(np.median(task_gains)),
        "tasks_better_worse_equal": [
            signs.num_better,
            signs.num_worse,
            signs.num_equal,
        ],
        "sign_test_p": signs.p_value,
        "mean_selected_gain_percent": selected.mean,
        "selected_ci95": list(selected.ci95),
        "valid_action_rate": scores.valid_action_rate(records),
        "mean_step_reward": scores.mean_step_reward(records),
        "num_trajectories": len(records),
        "mean_steps": num_steps / len(records),
    }


def _comparison_numbers(comparison: Comparison) -> dict[str, Any]:
    tasks = comparison.tasks
    return {
        "ours": comparison.ours,
        "theirs": comparison.theirs,
        "split": comparison.split,
        "version": comparison.version,
        "mean_difference": comparison.difference.mean,
        "ci95": list(comparison.difference.ci95),
        "median_difference": comparison.median_difference,
        "tasks_better_worse_equal": [
            tasks.num_better,
            tasks.num_worse,
            tasks.num_equal,
        ],
        "sign_test_p": tasks.p_value,
    }


def _fresh_numbers(records: Sequence[FreshStepRecord]) -> dict[str, Any]:
    valid = [r.outcome != "invalid_action" for r in records]
    return {
        "mean_step_reward": sum(r.reward for r in records) / len(records),
        "valid_action_rate": sum(valid) / len(valid),
        "num_steps": len(records),
    }


def _task_numbers(
    task: Task, evaluations: Mapping[str, Sequence[EvalRecord]]
) -> dict[str, Any]:
    shared = {
        "metric": task.metric,
        "direction": task.direction,
        "baseline": task.baseline,
        "split": task.split,
    }
    numbers: dict[str, Any] = {}
    for name, records in evaluations.items():
        mine = [r for r in records if r.trajectory.task_id == task.id]
        if mine:
            score = scores.task_score(mine, task)
            numbers[name] = {
                "avg": score.avg,
                "best": score.best,
                "relative_gain_percent": score.gain,
                **shared,
            }
    return numbers


def _isolation(evaluations: Mapping[str, Sequence[EvalRecord]]) -> str:
    levels = {
        step.isolation
        for records in evaluations.values()
        for record in records
        for step in record.trajectory.steps
    }
    # The weakest level that anything ran under is the run's level.
    return next((lv for lv in sorted(levels) if "not isolated" in lv), None) or (
        sorted(levels)[0] if levels else "nothing ran"
    )
