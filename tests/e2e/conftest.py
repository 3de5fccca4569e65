"""One finished run of the smallest config, shared by all end-to-end tests."""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = "tests/e2e/tiny_config.py"
TIMEOUT_S = 600.0


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """Returns (run directory, what the pipeline printed); tests do not change it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # one for all workers of this session
    workdir, output = folder / "straight", folder / "straight.txt"
    with (folder / "straight.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # The first worker runs it, the others wait.
        if not output.is_file():
            output.write_text(run_pipeline(workdir))
    return workdir, output.read_text()


def environment(num_devices: int = 1) -> dict[str, str]:
    """Returns variables of a stage's process, which compiles much, computes little."""
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    return os.environ | {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


def pipeline_command(workdir: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "launch.pipeline",
        f"--config={CONFIG}",
        f"--workdir={workdir}",
    ]


def run_pipeline(workdir: Path, *more: str) -> str:
    result = subprocess.run(
        [*pipeline_command(workdir), *more],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def copy_run(finished, tmp_path):
    """Copies the finished run but for some stages, so that they can be run again."""

    def copy(name: str, *without: str) -> Path:
        target = tmp_path / name
        ignore = shutil.ignore_patterns("eval", "report", "export", "stages.json")
        shutil.copytree(finished[0], target, ignore=ignore)
        for stage in without:
            shutil.rmtree(target / stage, ignore_errors=True)
        return target

    return copy


def start_stage(
    stage: str, workdir: Path, *arguments: str, devices: int = 1
) -> subprocess.Popen[str]:
    """Starts a stage as a program with so many CPU devices; stderr is a pipe."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", f"launch.{stage}", f"--config={CONFIG}"),
            *(f"--workdir={workdir}", *arguments),
        ],
        cwd=ROOT,
        env=environment(devices),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Returns when a file that the program writes has so many lines."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not path.is_file() or path.read_text().count("\n") < count:
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
