"""What ours costs as sizes grow: curves without a peer.

Every curve is measured in turns over its points, and the median is reported: a
machine that gets slower does not bend it.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.bench import environment
from launch.bench.child import ROOT


def in_process(
    name: str, module: str, *arguments: str
) -> Callable[[int, Path], dict[str, Any]]:
    """Returns a workload that runs a module of `launch.bench` in a process of its own.

    Args:
      name: of the workload.
      module: called with `arguments`, rounds, folder and a file for the result.
      *arguments: the first ones.
    """

    def run(rounds: int, folder: Path) -> dict[str, Any]:
        out = folder / f"{name}.json"
        command = [sys.executable, "-m", f"launch.bench.{module}", *arguments]
        command += [str(rounds), str(folder), str(out)]
        subprocess.run(command, check=True, cwd=ROOT)
        return json.loads(out.read_text())

    return run


def medians(calls: dict[Any, Callable[[], object]], rounds: int) -> dict[Any, float]:
    """Returns the median CPU seconds of each call; the first of each is not counted."""
    taken: dict[Any, list[float]] = {key: [] for key in calls}
    for _ in range(rounds + 1):
        for key, call in calls.items():
            start = time.process_time()
            call()
            taken[key].append(time.process_time() - start)
    return {key: statistics.median(seconds[1:]) for key, seconds in taken.items()}


def measure_environment(rounds: int, folder: Path) -> dict[str, Any]:
    """Returns what steps, parallel steps and a pool of states cost."""
    del folder
    return environment.run(rounds)


OWN: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "environment": measure_environment,
    "ppo_iteration": in_process("ppo_iteration", "iteration"),
    **{
        name: in_process(name, "curves", name)
        for name in ("decode_by_context", "decode_by_batch", "decode_by_capacity")
    },
}
