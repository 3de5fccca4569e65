"""Grids: what is shared, in which order it runs, what the tables hold."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from launch.ablate import run_nodes, select_runs
from launch.grid_plan import DONE_FILE, plan_grid, unique_nodes
from launch.grid_results import make_ablation, read_curve, spent_by_update
from mlagent_jax.config import (
    Arm,
    Comparison,
    Grid,
    apply_overrides,
    load_config,
    load_grid,
)
from mlagent_jax.errors import ConfigError
from mlagent_jax.evaluation.ablation import AblationRun, CurvePoint, read_ablations
from mlagent_jax.train.metrics import MetricsWriter

ROOT = Path(__file__).parents[2]
GRID = Grid(
    name="g",
    base=str(ROOT / "configs" / "quickstart.py"),
    seeds=(0, 1),
    arms=(
        Arm("sft", policy="sft"),
        Arm("ppo"),
        Arm("other kl", ("ppo.kl_coef=0.5",)),
        Arm("longer sft", ("sft.num_epochs=7",)),
    ),
    comparisons=(),
)


def stages(nodes):
    return sorted(node.stage for node in nodes)


def test_every_grid_of_configs_can_be_planned(tmp_path):
    for path in (ROOT / "configs").glob("*.py"):
        if "get_grid" in path.read_text():
            grid = load_grid(str(path))
            grid = dataclasses.replace(grid, base=str(ROOT / grid.base))
            assert len(plan_grid(grid, tmp_path)) == len(grid.arms) * len(grid.seeds)


def test_arms_share_the_stages_whose_settings_agree(tmp_path):
    runs = plan_grid(dataclasses.replace(GRID, seeds=(0,)), tmp_path)
    nodes = unique_nodes(runs)
    assert stages(nodes) == sorted(
        ["prepare", "collect", "pretrain", "sft", "sft", "ppo", "ppo", "ppo"]
        + ["evaluate"] * 4
    )
    by_arm = {run.arm.name: run.nodes for run in runs}
    assert by_arm["ppo"][3] == by_arm["other kl"][3]  # one fine-tuned policy
    assert by_arm["ppo"][3] != by_arm["longer sft"][3]
    assert by_arm["ppo"][2] == by_arm["longer sft"][2]
    assert by_arm["sft"][-1].folder != by_arm["ppo"][-1].folder


def test_another_seed_shares_the_data_alone(tmp_path):
    nodes = unique_nodes(plan_grid(GRID, tmp_path))
    assert stages(nodes).count("prepare") == 1
    assert stages(nodes).count("collect") == 2


def test_overrides_reach_every_arm_and_an_arms_own_come_last(tmp_path):
    runs = plan_grid(GRID, tmp_path, ["ppo.kl_coef=0.25", "ppo.num_updates=3"])
    assert {run.config.ppo.num_updates for run in runs} == {3}
    assert [r.config.ppo.kl_coef for r in runs[:4]] == [0.25, 0.25, 0.5, 0.25]


def test_a_wrong_change_names_its_arm_before_anything_runs(tmp_path):
    bad = dataclasses.replace(GRID, arms=(Arm("typo", ("ppo.kl_cef=1",)),))
    with pytest.raises(ConfigError, match=r"arm 'typo': .*did you mean 'kl_coef'"):
        plan_grid(bad, tmp_path)


def test_a_part_of_a_grid_can_be_chosen(tmp_path):
    runs = plan_grid(GRID, tmp_path)
    assert select_runs(runs, [], []) == runs
    (run,) = select_runs(runs, ["other kl"], ["1"])
    assert (run.arm.name, run.seed) == ("other kl", 1)
    assert len(select_runs(runs, ["ppo", "sft"], [])) == 4
    with pytest.raises(ConfigError, match="--arm=pop: expected one of .*'ppo'"):
        select_runs(runs, ["pop"], [])
    with pytest.raises(ConfigError, match="--seed=7: expected one of .*'0', '1'"):
        select_runs(runs, [], ["7"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (0, 0)}, "at least one, none twice"),
        ({"arms": (Arm("a"), Arm("a"))}, "unique names"),
        ({"comparisons": (Comparison("c", "t", ("nobody",)),)}, "nobody"),
        (
            {"comparisons": (Comparison("c", "t", ("sft", "ppo"), at="seconds"),)},
            "to have a curve",
        ),
    ],
)
def test_wrong_grids_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(GRID, **changes)


def test_stages_run_after_their_parents_and_side_by_side(tmp_path):
    nodes = unique_nodes(plan_grid(GRID, tmp_path))
    lock, running, most = threading.Lock(), set(), 0

    def run(node):
        nonlocal most
        assert all(before.is_done for before in node.before)
        with lock:
            running.add(node)
            most = max(most, len(running))
        node.link_products()
        (node.folder / DONE_FILE).write_text("{}")
        with lock:
            running.remove(node)
        return 0

    done = []
    failed = run_nodes(nodes, run, num_parallel=3, on_done=lambda: done.append(1))
    assert failed == []
    assert len(done) == len(nodes)
    assert most <= 3
    assert all(node.is_done for node in nodes)
    # Nothing is left to do for the same command.
    assert run_nodes(nodes, None, num_parallel=3, on_done=None) == []


def test_a_failed_stage_stops_only_what_needs_it(tmp_path):
    runs = plan_grid(dataclasses.replace(GRID, seeds=(0,)), tmp_path)
    nodes = unique_nodes(runs)
    broken = next(run for run in runs if run.arm.name == "longer sft").nodes[3]

    def run(node):
        if node == broken:
            return 2
        node.link_products()
        (node.folder / DONE_FILE).write_text("{}")
        return 0

    failed = run_nodes(nodes, run, num_parallel=2, on_done=lambda: None)
    assert failed == [broken]
    finished = {run.arm.name for run in runs if run.nodes[-1].is_done}
    assert finished == {"sft", "ppo", "other kl"}


def make_run(seed, seconds, executions, gains):
    curve = tuple(
        CurvePoint(
            update=i,
            train_seconds=seconds * i / (len(gains) - 1),
            num_executions=executions * i // (len(gains) - 1),
            gain_percent={"held_in": gain},
        )
        for i, gain in enumerate(gains)
    )
    values = {"seconds": seconds, "executions": float(executions), "gain_held_in": 99.0}
    return AblationRun(seed=seed, values=values, curve=curve)


def test_equal_cost_reads_both_curves_where_the_cheaper_one_ends():
    measured = {
        "fast": [make_run(0, 10.0, 100, [0, 1, 2, 3, 4])],
        "slow": [make_run(0, 40.0, 100, [0, 10, 20, 30, 40])],
    }
    grid = dataclasses.replace(GRID, seeds=(0,), arms=(Arm("fast"), Arm("slow")))
    for at, expected in (("seconds", (4, 10)), ("executions", (4, 40))):
        comparison = Comparison("c", "t", ("fast", "slow"), at=at)
        ablation = make_ablation(grid, comparison, measured)
        gains = [v.runs[0].values["gain_held_in"] for v in ablation.variants]
        assert tuple(gains) == expected


def test_a_curve_counts_cached_scripts_at_the_time_of_their_first_run(tmp_path):
    config = load_config(GRID.base, ["env.num_workers=2"])
    with MetricsWriter(tmp_path) as writer:
        for step in (1, 2):
            metrics = {"sample_s": 2.0, "script_all_s": 8.0, "score_s": 1.0}
            writer.write(step, metrics | {"update_s": 4.0, "num_executions": 50.0})
    probes = [
        {"update": u, "split": "held_in", "task": t, "relative_gain_percent": g}
        for u, t, g in [(0, "a", 0.0), (2, "a", 4.0), (2, "a", 8.0), (2, "b", 10.0)]
    ]
    path = tmp_path / "probes.jsonl"
    path.write_text("".join(json.dumps(p) + "\n" for p in probes))
    spent = spent_by_update(tmp_path, config)
    assert spent == [(0.0, 0.0), (11.0, 50.0), (22.0, 100.0)]
    first, last = read_curve(path, spent)
    assert (first.update, first.train_seconds, first.num_executions) == (0, 0.0, 0)
    assert (last.update, last.train_seconds, last.num_executions) == (2, 22.0, 100)
    assert last.gain_percent == {"held_in": 8.0}  # mean over tasks, each its own mean
    ahead = apply_overrides(config, ["ppo.max_staleness=1", "ppo.importance_cap=2"])
    assert spent_by_update(tmp_path, ahead)[-1] == (12.0, 100.0)


def test_runs_that_are_missing_are_said_to_be():
    comparison = Comparison("c", "t", ("sft", "ppo"))
    run = AblationRun(seed=0, values={"gain_held_in": 1.0})
    ablation = make_ablation(GRID, comparison, {"sft": [run]})
    assert "3 runs are missing" in ablation.note
    assert [len(v.runs) for v in ablation.variants] == [1, 0]


@pytest.mark.slow
def test_a_tiny_grid_runs_from_nothing_to_its_tables_and_resumes(tmp_path):
    command = [
        sys.executable, "-m", "launch.ablate",
        "--config=tests/e2e/tiny_grid.py", f"--workdir={tmp_path}",
    ]  # fmt: skip

    def run(*more):
        return subprocess.run(
            [*command, *more],
            cwd=ROOT,
            # One device, not this process's eight.
            env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )

    result = run()
    assert result.returncode == 0, result.stdout + result.stderr
    found = {a.name: a for a in read_ablations(tmp_path / "ablation")}
    assert set(found) == {"modes", "seconds", "estimators"}
    for ablation in found.values():
        assert all(len(v.runs) == 1 for v in ablation.variants), ablation.name
    values = found["modes"].variants[0].runs[0].values
    assert {"gain_held_in", "gain_held_out", "executions", "seconds"} <= set(values)
    assert (tmp_path / "ablation" / "ablation_modes.md").is_file()
    assert (tmp_path / "ablation" / "ablation_modes.csv").is_file()
    done = sorted(tmp_path.glob("stages/*/done.json"))
    before = {path: json.loads(path.read_text()) for path in done}
    again = run()
    assert again.returncode == 0
    assert {path: json.loads(path.read_text()) for path in done} == before
