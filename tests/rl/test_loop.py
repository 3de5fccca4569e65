"""The whole loop on a bandit: it learns, it resumes exactly, it stops in time."""

import contextlib
import dataclasses
import gc
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mlagent_jax.config import KlConfig, OptimizerConfig, PromptConfig, SampleConfig
from mlagent_jax.env.reward import Reward
from mlagent_jax.errors import ConfigError, DataError, DivergedError
from mlagent_jax.rl.loop import run_ppo, train_ppo
from mlagent_jax.rl.rollout import Rollout
from mlagent_jax.train.checkpoint import Checkpoints, load_params
from mlagent_jax.train.metrics import read_metrics
from tests.rl.bandit import (
    GOOD,
    MODEL,
    NUM_SAMPLES,
    Bandit,
    make_config,
    make_policy_params,
)

NUM_UPDATES = 20
SETTINGS = {
    "num_updates": NUM_UPDATES,
    "num_epochs": 2,
    "entropy_coef": 0.03,
    "actor": OptimizerConfig(peak_lr=5e-3, end_lr_frac=1.0),
    "checkpoint_every": 2,
    "critic_warmup_updates": 1,
    "probe_every": 8,
}
TIMES = ("score_s", "update_s", "rollout_s", "train_s", "idle_frac")


class Bar:
    def update(self, n=1):
        pass

    def set_postfix_str(self, s="", refresh=True):
        pass


@contextlib.contextmanager
def no_progress(total, description, unit, initial):
    yield Bar()


def train(directory, collect=None, config=None, params=None):
    bandit = Bandit()
    return train_ppo(
        config or make_config(**SETTINGS),
        directory,
        graphdef=bandit.graphdef,
        model_cfg=MODEL,
        take_policy=lambda: make_policy_params() if params is None else params,
        collect=collect or bandit.collect,
        probe=lambda params: [{"task": "toy"}, {"task": "other"}],
        progress=no_progress,
    )


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_run(directory, other):
    for records, expected in (
        (read_metrics(directory), read_metrics(other)),
        (read_jsonl(directory / "probes.jsonl"), read_jsonl(other / "probes.jsonl")),
    ):
        for record in (*records, *expected):
            for name in (*TIMES, "train_seconds"):
                record.pop(name, None)
        assert records == expected
    assert (directory / "rollouts.jsonl").read_text() == (
        other / "rollouts.jsonl"
    ).read_text()
    for prefix in ("actor", "critic"):  # parameters, moments and counters of both
        got, expected = (
            load_params(d / "checkpoints", prefix=prefix) for d in (directory, other)
        )
        jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing disturbed."""
    directory = tmp_path_factory.mktemp("ppo")
    state = train(directory)
    return directory, state


def test_ppo_learns_the_bandit(finished):
    rewards = [m["reward_mean"] for m in read_metrics(finished[0])]
    assert len(rewards) == NUM_UPDATES
    assert np.mean(rewards[:2]) < 0.3
    assert np.mean(rewards[-4:]) > 0.9 * GOOD


def test_metrics_tell_how_the_update_went(finished):
    metrics = read_metrics(finished[0])
    assert [m["step"] for m in metrics] == list(range(1, NUM_UPDATES + 1))
    assert all(math.isfinite(v) for m in metrics for v in m.values())
    assert all(m["logprob_mismatch"] < 1e-4 for m in metrics)
    assert all(m["valid_action_rate"] == 1.0 for m in metrics)
    assert abs(metrics[0]["value_mean"]) < 0.1
    assert metrics[-1]["value_mean"] == pytest.approx(GOOD, abs=0.15)


def test_the_actor_waits_for_the_critic_to_warm_up(finished):
    first, second, third = read_metrics(finished[0])[:3]
    assert "policy_loss" not in first
    assert "value_loss" in first
    # What an update changed shows in the next one's distance to the reference.
    assert second["kl_to_reference"] == 0
    assert "policy_loss" in second
    assert third["kl_to_reference"] != 0


def test_probes_are_made_first_last_and_every_few_updates(finished):
    records = read_jsonl(finished[0] / "probes.jsonl")
    assert [r["update"] for r in records] == [0, 0, 8, 8, 16, 16, 20, 20]
    times = [r["train_seconds"] for r in records]
    assert times == sorted(times)
    assert times[0] == 0.0


def test_a_finished_run_does_nothing_more(finished):
    directory, state = finished

    def collect(update, params, on_sampled):
        raise AssertionError("nothing is left to do")

    again = train(directory, collect)
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_a_run_without_a_penalty_keeps_no_reference(tmp_path):
    def live_bytes():
        gc.collect()
        return sum(x.nbytes for x in jax.live_arrays())

    def bytes_of_first_rollout(kl_coef):
        before, during = live_bytes(), []

        def collect(update, params, on_sampled):
            during.append(live_bytes() - before)
            return Bandit().collect(update, params, on_sampled)

        config = make_config(num_updates=1, kl_coef=kl_coef)
        train(tmp_path / str(kl_coef), collect, config)
        return during[0]

    policy_bytes = sum(x.nbytes for x in jax.tree.leaves(make_policy_params()))
    more = bytes_of_first_rollout(0.1) - bytes_of_first_rollout(0.0)
    assert more == pytest.approx(policy_bytes, rel=0.01)


def test_a_run_that_failed_goes_on_to_the_same_end(finished, tmp_path):
    bandit = Bandit()

    def collect(update, params, on_sampled):
        if update == 11:
            raise OSError("the network is down")
        return bandit.collect(update, params, on_sampled)

    with pytest.raises(OSError, match="network"):
        train(tmp_path, collect)
    train(tmp_path)
    assert_same_run(tmp_path, finished[0])


CHILD = """
import sys
from pathlib import Path
from tests.rl import test_loop
settings = getattr(test_loop, sys.argv[2])
test_loop.train(Path(sys.argv[1]), config=test_loop.make_config(**settings))
"""


def start_child(
    directory: Path, cache: str, settings: str = "SETTINGS"
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(directory), settings],
        cwd=Path(__file__).parents[2],
        env=os.environ
        | {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        },
    )


def kill_child_after(num_updates: int, directory: Path, *args: str) -> None:
    """Starts a run in another process and kills it (SIGKILL) in its midst."""
    child = start_child(directory, *args)
    metrics = directory / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not metrics.exists() or metrics.read_text().count("\n") < num_updates:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()


def test_a_run_that_was_killed_goes_on_to_the_same_end(
    finished, tmp_path, compilation_cache
):
    kill_child_after(9, tmp_path, compilation_cache)
    assert start_child(tmp_path, compilation_cache).wait(timeout=300) == 0
    assert_same_run(tmp_path, finished[0])


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path):
    bandit = Bandit()

    def collect(update, params, on_sampled):
        rollout = bandit.collect(update, params, on_sampled)
        if update < 3:
            return rollout
        huge = Reward(total=3e38, parts={})
        samples = [dataclasses.replace(s, reward=huge) for s in rollout.samples]
        return Rollout(update=update, samples=tuple(samples))

    with pytest.raises(DivergedError, match=r"ppo update 4: not finite.*\[2\]"):
        train(tmp_path, collect)
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.steps() == [2]
    assert [m["step"] for m in read_metrics(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("by_tokens", [False, True])
def test_scores_from_before_the_last_script_change_no_bit(tmp_path, by_tokens):
    budget = {"micro_batch_tokens": 64} if by_tokens else {}
    config = make_config(**SETTINGS | {"num_updates": 3} | budget)
    bandit = Bandit(drop=(0, 7, 9))
    early = train(tmp_path / "early", bandit.collect, config)

    def collect(update, params, on_sampled):
        return bandit.collect(update, params)

    late = train(tmp_path / "late", collect, config)
    jax.tree.map(np.testing.assert_array_equal, early, late)
    assert_same_run(tmp_path / "early", tmp_path / "late")


def test_dropped_samples_are_counted_and_cost_nothing_else(tmp_path):
    bandit = Bandit(drop=(0, 7, 9))
    train(tmp_path, bandit.collect)
    metrics = read_metrics(tmp_path)
    assert [m["num_dropped"] for m in metrics] == [3.0] * NUM_UPDATES
    assert np.mean([m["reward_mean"] for m in metrics[-4:]]) > 0.9 * GOOD
    num_kept = NUM_UPDATES * (NUM_SAMPLES - 3)
    assert len(read_jsonl(tmp_path / "rollouts.jsonl")) == num_kept


STALE = SETTINGS | {
    "num_updates": 14,
    "num_epochs": 1,
    "max_staleness": 1,
    "importance_cap": 2.0,
    "kl": KlConfig(target=0.05, horizon=200.0),
}


@pytest.fixture(scope="module")
def stale(tmp_path_factory):
    """A run that collects one update ahead, and the policies that collected."""
    directory = tmp_path_factory.mktemp("stale")
    bandit, used = Bandit(), {}

    def collect(update, params, on_sampled):
        used[update] = jax.device_get(params["norm"]["scale"])
        return bandit.collect(update, params, on_sampled)

    train(directory, collect, config=make_config(**STALE))
    return directory, used


def test_a_rollout_is_collected_by_the_policy_before_the_update_it_overlaps(stale):
    _, used = stale
    assert sorted(used) == list(range(14))
    start = make_policy_params()["norm"]["scale"]
    # The critic warms up in update 0, so the policy of update 1 is still the start.
    assert all(np.array_equal(used[update], start) for update in range(3))
    assert not np.array_equal(used[3], used[2])


def test_stale_samples_teach_as_well(stale):
    metrics = read_metrics(stale[0])
    rewards = [m["reward_mean"] for m in metrics]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.1
    # Samples of the same policy need no correction, those of another one do.
    assert metrics[0]["importance_mean"] == pytest.approx(1.0, abs=1e-4)
    assert metrics[-1]["logprob_mismatch"] > 1e-3


def test_the_kl_weight_adapts_once_the_actor_trains(stale):
    coefs = [m["kl_coef"] for m in read_metrics(stale[0])]
    assert coefs[0] == coefs[1] == pytest.approx(0.001)
    assert len(set(coefs[2:])) > 1


def test_a_stale_run_that_failed_goes_on_with_the_samples_in_flight(stale, tmp_path):
    bandit = Bandit()
    config = make_config(**STALE)

    def collect(update, params, on_sampled):
        if update == 8:
            raise OSError("the network is down")
        return bandit.collect(update, params, on_sampled)

    with pytest.raises(OSError, match="network"):
        train(tmp_path, collect, config=config)
    in_flight = sorted(p.name for p in tmp_path.glob("rollout-*.json"))
    assert in_flight
    train(tmp_path, config=config)
    assert_same_run(tmp_path, stale[0])


@pytest.mark.slow
def test_a_stale_run_that_was_killed_twice_goes_on_to_the_same_end(
    stale, tmp_path, compilation_cache
):
    for num_updates in (4, 9):
        kill_child_after(num_updates, tmp_path, compilation_cache, "STALE")
    assert start_child(tmp_path, compilation_cache, "STALE").wait(timeout=300) == 0
    assert_same_run(tmp_path, stale[0])


def test_a_lost_rollout_in_flight_stops_the_run_with_advice(tmp_path):
    config = make_config(**STALE)

    def collect(update, params, on_sampled):
        if update == 5:
            raise OSError("the network is down")
        return Bandit().collect(update, params, on_sampled)

    with pytest.raises(OSError, match="network"):
        train(tmp_path, collect, config=config)
    for path in tmp_path.glob("rollout-*.json"):
        path.write_text(path.read_text()[:100])
    with pytest.raises(DataError, match=r"rollout-4.json: .* in flight"):
        train(tmp_path, config=config)


def test_another_setting_or_policy_is_refused_on_resume(finished):
    directory, _ = finished
    with pytest.raises(ConfigError, match="with other settings"):
        train(directory, config=make_config(**SETTINGS | {"kl_coef": 0.5}))
    with pytest.raises(ConfigError, match="sft_weights"):
        train(directory, params=make_policy_params(seed=5))
    with pytest.raises(ConfigError, match="seed: 0 -> 1"):
        train(directory, config=make_config(seed=1, **SETTINGS))


def test_contradicting_settings_are_refused_before_any_work(tmp_path):
    short = dataclasses.replace(
        make_config(),
        prompt=PromptConfig(max_prompt_tokens=6),
        sample=SampleConfig(max_reply_tokens=3),
    )
    with pytest.raises(ConfigError, match=r"ppo.seq_lens = \(8,\).* = 9"):
        run_ppo(short, tmp_path, progress=no_progress, score_trajectory=None)
    greedy = dataclasses.replace(
        short, sample=SampleConfig(max_reply_tokens=2, temperature=0.0)
    )
    with pytest.raises(ConfigError, match=r"sample.temperature = 0\.0"):
        run_ppo(greedy, tmp_path, progress=no_progress, score_trajectory=None)
    assert not list(tmp_path.iterdir())


def test_micro_batches_that_the_mesh_cannot_split_are_refused(tmp_path):
    too_small = make_config(**SETTINGS | {"micro_batch_size": 4})
    with pytest.raises(ConfigError, match="micro_batch_size = 4: expected a multiple"):
        train(tmp_path, config=too_small)
