"""Runs a grid of arms and seeds: `python -m launch.ablate --config=configs/...`.

Stages that arms have in common run once; those that wait for nothing run side by
side, as many as the cores allow. The same command goes on where it was stopped. Tables
of what is finished (ablation/*.json, *.md, *.csv) are written at the end, and
`python -m launch.report` shows them. `--set` changes the base of every arm; `--arm`
and `--seed` run a part of the grid now, which counts when the rest is run later.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from absl import flags

from launch import common, exits, run_record
from launch.grid_plan import DONE_FILE, Node, PlannedRun, plan_grid, unique_nodes
from launch.grid_results import make_ablation, measure_run
from mlagent_jax.config import Grid
from mlagent_jax.errors import ConfigError
from mlagent_jax.evaluation.ablation import (
    AblationRun,
    ablation_tables,
    write_ablation,
)
from mlagent_jax.evaluation.tables import to_text, write_table

RunNode = Callable[[Node], int]


_ARM = flags.DEFINE_multi_string(
    "arm", [], "Name of an arm to run now; may be repeated. Default: all."
)
_SEED = flags.DEFINE_multi_string(
    "seed", [], "Seed to run now; may be repeated. Default: all of the grid."
)


def main(grid: Grid, workdir: Path, overrides: Sequence[str]) -> None:
    """Runs what is not done yet and writes the tables."""
    all_runs = plan_grid(grid, workdir, overrides)
    runs = select_runs(all_runs, _ARM.value, _SEED.value)
    nodes = unique_nodes(runs)
    num_stages = sum(len(run.nodes) for run in runs)
    print(
        f"{len(runs)} of {len(all_runs)} runs: {len(nodes)} stages to run "
        f"({num_stages} without sharing), {grid.num_parallel} side by side",
        flush=True,
    )
    num_done = sum(node.is_done for node in nodes)
    with common.progress(len(nodes), "ablate", "stage", num_done) as bar:
        failed = run_nodes(
            nodes,
            lambda node: run_node(grid.base, node),
            num_parallel=grid.num_parallel,
            on_done=lambda: bar.update(),
        )
    write_tables(grid, all_runs, workdir / "ablation")
    if failed:
        logs = "\n".join(f"  {node.folder / 'log.txt'}" for node in failed)
        exits.fail(
            f"{len(failed)} stages failed; what does not need them has run. Their "
            f"logs:\n{logs}\nthe same command tries them again",
            status=1,
        )


def select_runs(
    runs: Sequence[PlannedRun], arms: Sequence[str], seeds: Sequence[str]
) -> list[PlannedRun]:
    """Returns the runs of some arms with some seeds; none named means all of them.

    Raises:
      ConfigError: no run has such an arm or such a seed.
    """
    known_arms = list(dict.fromkeys(run.arm.name for run in runs))
    known_seeds = list(dict.fromkeys(str(run.seed) for run in runs))
    for flag, wanted, known in (
        ("--arm", arms, known_arms),
        ("--seed", seeds, known_seeds),
    ):
        for name in wanted:
            if name not in known:
                raise ConfigError(f"{flag}={name}: expected one of {known}")
    return [
        run
        for run in runs
        if run.arm.name in (arms or known_arms)
        and str(run.seed) in (seeds or known_seeds)
    ]


def run_nodes(
    nodes: Sequence[Node],
    run: RunNode,
    *,
    num_parallel: int,
    on_done: Callable[[], object],
) -> list[Node]:
    """Runs every stage whose predecessors are done; returns those that failed.

    Args:
      nodes: parents before children.
      run: runs one stage and returns its exit status.
      num_parallel: stages side by side.
      on_done: called after each success.
    """
    waiting = [node for node in nodes if not node.is_done]
    running: dict[Future[int], Node] = {}
    failed: list[Node] = []
    with ThreadPoolExecutor(num_parallel) as pool:
        while True:
            ready = [n for n in waiting if all(b.is_done for b in n.before)]
            for node in ready[: num_parallel - len(running)]:
                waiting.remove(node)
                running[pool.submit(run, node)] = node
            if not running:
                return failed
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                node = running.pop(future)
                if future.result() == 0:
                    on_done()
                else:
                    failed.append(node)


def run_node(base: str, node: Node) -> int:
    """Runs one stage as a program of its own; returns its exit status."""
    node.link_products()
    command = [
        sys.executable,
        "-m",
        f"launch.{node.stage}",
        f"--config={base}",
        f"--workdir={node.folder}",
        *(f"--set={override}" for override in node.overrides),
    ]
    environment = os.environ | {exits.PARENT_PID: str(os.getpid())}
    start = time.monotonic()
    with (node.folder / "log.txt").open("ab") as log:
        status = subprocess.run(
            command, check=False, env=environment, stdout=log, stderr=log
        ).returncode
    if status == 0:
        seconds = round(time.monotonic() - start, 2)
        run_record.write_json(node.folder / DONE_FILE, {"seconds": seconds})
    return status


def write_tables(grid: Grid, runs: Sequence[PlannedRun], folder: Path) -> None:
    """Writes every comparison as JSON, Markdown and CSV, and prints it."""
    measured: dict[str, list[AblationRun]] = {}
    for run in runs:
        if run.nodes[-1].is_done:
            measured.setdefault(run.arm.name, []).append(measure_run(run))
    for comparison in grid.comparisons:
        ablation = make_ablation(grid, comparison, measured)
        write_ablation(folder, ablation)
        for table in ablation_tables(ablation):
            write_table(table, folder)
            print(to_text(table), flush=True)


if __name__ == "__main__":
    common.run_grid(main)
