"""Runs every stage of one config in order: `python -m launch.pipeline --config=...`.

Each stage is a program of its own, so a crash or a leak of one cannot reach the
next, and host stages never load jax. Finished stages are recorded in stages.json;
the same command goes on where it stopped.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from launch import common, exits, run_record
from mlagent_jax.config import RunConfig


def stage_commands(config: RunConfig, workdir: Path) -> dict[str, list[str]]:
    """Returns stage name -> arguments after `python -m`, in order."""
    stages = ["prepare", "collect", "pretrain", "sft", "ppo", "evaluate"]
    if config.pretrain is None:
        stages.remove("pretrain")
    # The launched stages see the very flags that this program got.
    flags = sys.argv[1:]
    commands = {name: [f"launch.{name}", *flags] for name in stages}
    commands["convert"] = [
        "launch.convert",
        f"--src={workdir / 'ppo'}",
        f"--dst={workdir / 'export'}",
        "--to=hf",
        "--overwrite",  # of a start that was stopped before it could say "done"
    ]
    commands["report"] = ["launch.report", *flags]
    return commands


def main(run: common.Run) -> None:
    """Runs what is not done yet and stops at the first stage that fails."""
    path = run.workdir / "stages.json"
    seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    commands = stage_commands(run.config, run.workdir)
    for number, (name, arguments) in enumerate(commands.items(), start=1):
        banner = f"[{number}/{len(commands)}] {name}"
        if name in seconds:
            print(f"{banner}: done before ({seconds[name]:.0f} s)", flush=True)
            continue
        print(banner, flush=True)
        start = time.monotonic()
        environment = os.environ | {
            "PYTHONUNBUFFERED": "1",
            exits.PARENT_PID: str(os.getpid()),
        }
        status = _run(arguments, environment)
        if status != 0:
            exits.fail(
                f"stage {name} ended with status {status}; "
                "the same command continues from there",
                status=status if status > 0 else 1,
            )
        seconds[name] = round(time.monotonic() - start, 2)
        run_record.write_json(path, seconds)


def _run(arguments: list[str], environment: dict[str, str]) -> int:
    """Returns the exit status of a stage, which also gets our signals.

    Ctrl-C reaches it from the terminal; the one that we get means waiting for it.
    """
    stage = subprocess.Popen([sys.executable, "-m", *arguments], env=environment)
    handlers = {
        signal.SIGTERM: signal.signal(
            signal.SIGTERM, lambda number, frame: stage.send_signal(number)
        ),
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),
    }
    try:
        return stage.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    common.run_stage(main, lock="pipeline")
