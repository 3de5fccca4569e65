"""Cost of one script execution: warm sandbox against a cold interpreter.

Both run the same starter on the same data, in turns; medians with minimum and
maximum over the rounds. Run by `make bench`; prints, asserts nothing about time.
"""

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from mlagent_jax.config import EnvConfig
from mlagent_jax.env.executor import Executor
from mlagent_jax.env.task import prepare_task
from mlagent_jax.types import Outcome

ROUNDS = 11
ROOT = Path(__file__).parents[2]


def test_warm_execution_against_a_cold_interpreter(tmp_path):
    task = prepare_task(ROOT / "tasks" / "digits", tmp_path / "digits")
    files = {name: text.encode() for name, text in task.starter.items()}
    cold_dir = tmp_path / "cold"
    cold_dir.mkdir()
    shutil.copytree(task.public_dir, cold_dir / "data")
    for name, data in files.items():
        (cold_dir / name).write_bytes(data)
    warm_s, script_s, cold_s = [], [], []
    with Executor({task.id: task}, EnvConfig()) as executor:
        executor.run(task.id, files, task.entry_script)  # starts the zygote
        for _ in range(ROUNDS):
            start = time.perf_counter()
            result = executor.run(task.id, files, task.entry_script).result
            warm_s.append(time.perf_counter() - start)
            script_s.append(result.wall_s)
            assert result.outcome is Outcome.INFO, result
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, task.entry_script],
                cwd=cold_dir,
                check=True,
                capture_output=True,
            )
            cold_s.append(time.perf_counter() - start)
        print(f"\nisolation: {executor.isolation}, {ROUNDS} rounds, ms")
    own_s = [w - s for w, s in zip(warm_s, script_s, strict=True)]
    for name, values in (
        ("warm execution", warm_s),
        ("  of it our own cost", own_s),
        ("cold interpreter", cold_s),
    ):
        low, high = 1e3 * min(values), 1e3 * max(values)
        median = 1e3 * statistics.median(values)
        print(f"{name:<22} median {median:7.1f}   [{low:.1f}, {high:.1f}]")
    ratio = statistics.median(cold_s) / statistics.median(warm_s)
    print(f"cold / warm            {ratio:.1f}")
