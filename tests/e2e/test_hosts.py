"""Two processes of jax.distributed on CPU run the launchers as one process would."""

import json
import signal
import socket
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from launch.exits import RESTART_STATUS
from mlagent_jax.train.checkpoint import load_params
from tests.e2e.conftest import TIMEOUT_S, start_stage, wait_for_lines

NOTICE_S = 60.0
DEVICES = 4
# Adam makes a step of one size out of any gradient, also of one that is nothing but
# rounding. At the tiny run's rates such elements were seen to differ by 7e-6 (PPO,
# 2e-4) and, with jax 0.12, by 1.3e-6 (SFT, 2e-3); hence the paper's rate of SFT here.
SLOW = ("--set", "ppo.actor.peak_lr=1e-5")
PAPERS_RATE = ("--set", "sft.optimizer.peak_lr=2e-5")


def start_hosts(
    stage: str, workdir: Path, *arguments: str, second: tuple[str, ...] = ()
) -> list[subprocess.Popen]:
    """Starts a stage on two hosts with half of the devices each.

    The second host alone gets the further arguments `second`.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start_stage(
            stage,
            workdir,
            *(f"--coordinator=localhost:{port}", "--num_processes=2"),
            *(f"--process_id={i}", *arguments, *(second if i == 1 else ())),
            devices=DEVICES // 2,
        )
        for i in range(2)
    ]


def finish(*processes: subprocess.Popen) -> list[str]:
    """Returns the messages of processes that end well."""
    messages = [p.communicate(timeout=TIMEOUT_S)[1] for p in processes]
    assert [p.returncode for p in processes] == [0] * len(processes), messages
    return messages


def assert_close(ours: Path, theirs: Path, prefix: str) -> None:
    found, expected = (
        load_params(path / "checkpoints", prefix=prefix) for path in (ours, theirs)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=0),
        found,
        expected,
    )


def furthest_move(workdir: Path) -> float:
    """Returns how far fine-tuning moved the weight that it moved most."""
    before, after = (
        load_params(workdir / stage / "checkpoints", prefix="params")
        for stage in ("pretrain", "sft")
    )
    moves = jax.tree.map(lambda a, b: np.abs(a - b).max(), after, before)
    return max(map(float, jax.tree.leaves(moves)))


def read_rollouts(directory: Path) -> list[dict]:
    records = map(json.loads, (directory / "rollouts.jsonl").read_text().splitlines())
    names = ("update", "sample", "state", "reply", "outcome", "reward")
    return [{name: record[name] for name in names} for record in records]


@pytest.mark.slow
def test_two_hosts_fine_tune_as_one(copy_run):
    one, two = copy_run("one", "sft", "ppo"), copy_run("two", "sft", "ppo")
    reference = start_stage("sft", one, *PAPERS_RATE, devices=DEVICES)
    finish(reference, *start_hosts("sft", two, *PAPERS_RATE))
    assert_close(two / "sft", one / "sft", "params")
    # They went a way on which a wrong sum over hosts would show.
    assert furthest_move(one) > 1e-4


@pytest.mark.slow
def test_two_hosts_one_of_which_dies_sample_and_learn_as_one(copy_run):
    one, two = copy_run("one", "ppo"), copy_run("two", "ppo")
    reference = start_stage("ppo", one, *SLOW, devices=DEVICES)
    hosts = start_hosts("ppo", two, *SLOW)
    wait_for_lines(two / "ppo" / "metrics.jsonl", 1, hosts[0])
    hosts[1].send_signal(signal.SIGKILL)
    killed_s = time.monotonic()
    messages = hosts[0].communicate(timeout=TIMEOUT_S)[1]
    assert time.monotonic() - killed_s < NOTICE_S
    assert hosts[0].returncode not in (0, 1, 2), messages
    assert "another" in messages.lower(), messages
    hosts[1].communicate()
    finish(reference, *start_hosts("ppo", two, *SLOW))
    assert read_rollouts(two / "ppo") == read_rollouts(one / "ppo")
    assert_close(two / "ppo", one / "ppo", "actor/params")
    assert_close(two / "ppo", one / "ppo", "critic/params")


@pytest.mark.slow
def test_a_signal_to_one_host_stops_both_at_the_same_update(copy_run):
    workdir = copy_run("run", "ppo")
    hosts = start_hosts("ppo", workdir)
    wait_for_lines(workdir / "ppo" / "metrics.jsonl", 1, hosts[0])
    hosts[1].send_signal(signal.SIGTERM)
    messages = [p.communicate(timeout=TIMEOUT_S)[1] for p in hosts]
    assert [p.returncode for p in hosts] == [RESTART_STATUS] * 2, messages
    assert "stopped by a signal on another host" in messages[0]
    assert "stopped by SIGTERM" in messages[1]


def test_hosts_that_disagree_are_refused_with_every_differing_field(copy_run):
    workdir = copy_run("run", "sft", "ppo")
    other = ("--set", "sft.batch_size=8", "--set", "seed=5")
    hosts = start_hosts("sft", workdir, second=other)
    messages = [p.communicate(timeout=TIMEOUT_S)[1] for p in hosts]
    assert [p.returncode for p in hosts] == [2, 2], messages
    for text in messages:
        assert "config.seed: host 0: 0, host 1: 5" in text
        assert "config.sft.batch_size: host 0: 4, host 1: 8" in text
        assert "Traceback" not in text
    assert not (workdir / "sft").exists()
