"""What the environment costs: a step, a cached step, many at once, a pool of states.

Compared in the same run, in turns, with what MLAgentBench does: a cold interpreter for
every script and a copy of the workspace for every step. Importable without jax.

    python -m launch.bench.environment
"""

import functools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mlagent_jax.config import EnvConfig
from mlagent_jax.env.environment import Environment
from mlagent_jax.env.execution_cache import ExecutionCache
from mlagent_jax.env.executor import Executor
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.task import prepare_task
from mlagent_jax.env.worker_pool import WorkerPool
from mlagent_jax.text.actions import render_action
from mlagent_jax.types import Action, ActionKind, Outcome, State, StepRecord, Task

TASK = Path(__file__).parents[2] / "tasks" / "digits"
WORK_S = 0.1
NUM_PARALLEL_STEPS = 30
T = TypeVar("T")
POOL_SIZES = (100, 1_000, 10_000)
NUM_RESTORES = 300

# Works for 0.1 s of CPU and leaves a valid submission.
_WORKING_SCRIPT = f"""\
import time
import pandas as pd
start = time.process_time()
frame = pd.read_csv("data/sample_submission.csv")
while time.process_time() - start < {WORK_S}:
    pass
frame.to_csv("submission.csv", index=False)
"""


def run(rounds: int) -> dict[str, Any]:
    """Returns all measurements; times in seconds, [median, minimum, maximum].

    Args:
      rounds: repetitions of a step; at least 1.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        task = prepare_task(TASK, root / "task")
        return {
            "cpus": os.cpu_count(),
            "steps": measure_steps(task, root / "steps", rounds),
            "parallel": measure_parallel(task, root / "parallel"),
            "pool": measure_pool(task, root / "pool"),
        }


def measure_steps(task: Task, root: Path, rounds: int) -> dict[str, Any]:
    """Returns the cost of single steps, ours and a cold interpreter's, in turns."""
    cfg = EnvConfig()
    store = SnapshotStore(root)
    executor = Executor({task.id: task}, cfg)
    environment = Environment(
        {task.id: task}, store, executor, cfg, ExecutionCache(store)
    )
    own_s: list[float] = []
    cached_s: list[float] = []
    cached_cpu_s: list[float] = []
    whole_s: list[float] = []
    cold_s: list[float] = []
    try:
        start = environment.reset(task.id).state
        for number in range(rounds):
            reply = _edit(task, number)
            whole, step = _timed(lambda reply=reply: environment.step(start, reply))
            assert step.outcome is Outcome.SCORED, step.feedback
            whole_s.append(whole)
            own_s.append(step.env_s)
            used = time.process_time()
            again, step = _timed(lambda reply=reply: environment.step(start, reply))
            cached_cpu_s.append(time.process_time() - used)
            assert step.execution is not None
            assert step.execution.is_cached
            cached_s.append(again)
            cold, _ = _timed(lambda n=number: _cold_step(task, root / f"cold{n}"))
            cold_s.append(cold)
    finally:
        environment.close()
    return {
        "isolation": executor.isolation,
        "rounds": rounds,
        "whole_s": _spread(whole_s),
        "own_s": _spread(own_s),
        "cached_s": _spread(cached_s),
        "cached_cpu_s": _spread(cached_cpu_s),
        "cold_interpreter_and_copy_s": _spread(cold_s),
        "ratio": statistics.median(cold_s) / statistics.median(whole_s),
    }


def measure_parallel(task: Task, root: Path, num_workers: int = 2) -> dict[str, Any]:
    """Returns uncached steps a second of some workers on scripts that work 0.1 s."""
    cfg = EnvConfig(num_workers=num_workers, use_cache=False)
    with WorkerPool({task.id: task}, root, cfg) as pool:
        state = _state(task, SnapshotStore(root), _WORKING_SCRIPT)
        reply = render_action(Action(kind=ActionKind.RUN, path=task.entry_script))
        for number in range(2 * num_workers):  # so that every zygote is warm
            pool.submit(f"warm{number}", state, reply)
        _wait(pool)
        for number in range(NUM_PARALLEL_STEPS):
            pool.submit(f"step{number}", state, reply)
        seconds, steps = _timed(lambda: _wait(pool))
    used_s = sum(step.execution.wall_s for step in steps if step.execution)
    return {
        "workers": num_workers,
        "script_cpu_s": WORK_S,
        "steps": len(steps),
        "steps_per_s": len(steps) / seconds,
        "script_wall_s": used_s / len(steps),
    }


def measure_pool(task: Task, root: Path) -> dict[str, Any]:
    """Returns restore latency and disk use against the number of states in a pool."""
    script = task.starter[task.entry_script]
    store = SnapshotStore(root)
    rng = random.Random(0)
    snapshots: list[str] = []
    changed_bytes = 0
    sizes: dict[str, Any] = {}
    for size in POOL_SIZES:
        while len(snapshots) < size:
            text = f"{script}# state {len(snapshots)}\n".encode()
            changed_bytes += len(text)
            snapshots.append(store.put({task.entry_script: text, "lib.py": b"x = 1\n"}))
        fresh = SnapshotStore(root)  # what a worker that just started has in memory
        times = [
            _timed(functools.partial(fresh.get, snapshot))[0]
            for snapshot in rng.choices(snapshots, k=NUM_RESTORES)
        ]
        sizes[str(size)] = _spread(times)
    files = [path.stat() for path in root.rglob("*") if path.is_file()]
    return {
        "restore_s": sizes,
        "changed_bytes_per_state": changed_bytes / len(snapshots),
        "stored_bytes_per_state": sum(f.st_size for f in files) / len(snapshots),
        "disk_blocks_bytes_per_state": sum(f.st_blocks * 512 for f in files)
        / len(snapshots),
        "copied_workspace_bytes": sum(
            path.stat().st_size for path in task.public_dir.rglob("*")
        )
        + len(script),
    }


def _state(task: Task, store: SnapshotStore, script: str) -> State:
    return State(
        task_id=task.id,
        task_version=task.version,
        snapshot=store.put({task.entry_script: script.encode()}),
        score=task.baseline,
    )


def _edit(task: Task, number: int) -> str:
    content = f"{task.starter[task.entry_script]}# {number}\n"
    return render_action(
        Action(kind=ActionKind.WRITE, path=task.entry_script, content=content)
    )


def _cold_step(task: Task, folder: Path) -> None:
    """Runs the starter as MLAgentBench would: a copy, a new interpreter, a copy."""
    shutil.copytree(task.public_dir, folder / "data")
    (folder / task.entry_script).write_text(task.starter[task.entry_script])
    subprocess.run(
        [sys.executable, task.entry_script],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    shutil.copytree(folder, folder.with_name(f"{folder.name}-step"))


def _wait(pool: WorkerPool) -> list[StepRecord]:
    steps: list[StepRecord] = []
    while pool.num_pending():
        for result in pool.poll(1.0):
            assert isinstance(result.value, StepRecord), result.error
            steps.append(result.value)
    return steps


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


def _spread(values: Sequence[float]) -> list[float]:
    return [statistics.median(values), min(values), max(values)]


if __name__ == "__main__":
    print(json.dumps(run(11), indent=1))
