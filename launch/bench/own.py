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


def in_process(name: str) -> Callable[[int, Path], dict[str, Any]]:
    """Returns a workload that runs `launch.bench.curves` in a process of its own."""

    def run(rounds: int, folder: Path) -> dict[str, Any]:
        command = [sys.executable, "-m", "launch.bench.curves", name, str(rounds)]
        out = folder / f"{name}.json"
        subprocess.run([*command, str(folder), str(out)], check=True, cwd=ROOT)
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
    **{
        name: in_process(name)
        for name in ("decode_by_context", "decode_by_batch", "decode_by_capacity")
    },
}
