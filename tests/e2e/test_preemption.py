"""SIGTERM and Ctrl-C save and end a stage; the same command ends bit for bit alike."""

import signal
import subprocess
import time

import jax
import numpy as np
import pytest

from launch.exits import RESTART_STATUS
from mlagent_jax.train.checkpoint import candidate_steps, load_params
from tests.e2e.conftest import (
    ROOT,
    TIMEOUT_S,
    environment,
    pipeline_command,
    start_stage,
    wait_for_lines,
)

GRACE_S = 30.0


def wait_for_line(process: subprocess.Popen, text: str) -> None:
    """Reads the program's messages until one contains `text`."""
    assert process.stderr is not None
    seen = ""
    while text not in seen:
        character = process.stderr.read(1)
        assert character, f"ended before {text!r}: {seen}"
        seen += character


def assert_same_end(stage, prefix, ours, theirs) -> None:
    found, expected = (
        load_params(workdir / stage / "checkpoints", prefix=prefix)
        for workdir in (ours, theirs)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("stage", "number", "prefix"),
    [
        ("sft", signal.SIGTERM, "params"),  # while the first update compiles
        pytest.param("sft", signal.SIGINT, "opt_state", marks=pytest.mark.slow),
        # In a rollout or an update.
        pytest.param("ppo", signal.SIGTERM, "actor", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_stage_is_saved_and_continues_exactly(
    copy_run, finished, stage, number, prefix
):
    workdir = copy_run("stopped", stage, "ppo")
    process = start_stage(stage, workdir)
    if stage == "sft":
        wait_for_line(process, "0/")
    else:
        wait_for_lines(workdir / "ppo" / "metrics.jsonl", 1, process)
    process.send_signal(number)
    start_s = time.monotonic()
    _, messages = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == RESTART_STATUS, messages
    assert time.monotonic() - start_s < GRACE_S
    assert f"stopped by {number.name}; everything is saved" in messages
    assert "Traceback" not in messages
    step = candidate_steps(workdir / stage / "checkpoints")[0]
    last = candidate_steps(finished[0] / stage / "checkpoints")[0]
    assert 0 < step < last
    again = start_stage(stage, workdir)
    assert again.communicate(timeout=TIMEOUT_S)
    assert again.returncode == 0
    assert_same_end(stage, prefix, workdir, finished[0])


@pytest.mark.slow
def test_a_signal_to_the_pipeline_reaches_its_stage(copy_run):
    workdir = copy_run("run", "pretrain", "sft", "ppo")
    process = subprocess.Popen(
        pipeline_command(workdir),
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_line(process, "0/6")
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == RESTART_STATUS, messages
    assert "everything is saved" in messages
    assert candidate_steps(workdir / "pretrain" / "checkpoints") == [1]
