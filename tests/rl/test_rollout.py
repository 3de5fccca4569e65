"""Rollouts through the real event loop, with a fake policy and a fake executor."""

import dataclasses
import math

import numpy as np
import pytest

from mlagent_jax.config import EnvConfig, RewardConfig
from mlagent_jax.data.state_pool import StatePool
from mlagent_jax.data.trajectories import TrajectoryFile, TrajectoryWriter
from mlagent_jax.env.advance import advance
from mlagent_jax.env.pool_jobs import JobResult
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.errors import EnvUnavailableError
from mlagent_jax.policy.base import Reply
from mlagent_jax.rl.collect import collect_rollout
from mlagent_jax.rl.rollout import (
    Sample,
    derive_seed,
    rollout_metrics,
    rollout_records,
)
from mlagent_jax.rl.rollout_source import load_rollout, save_rollout
from mlagent_jax.rl.timeline import EXECUTION, Timeline
from mlagent_jax.types import Outcome, to_json
from tests.fakes import FakePolicy, make_fake_environment, make_graded_task
from tests.rl.bandit import make_config
from tests.samples import make_trajectory

NUM_STATES = 6
TASK = "toy"


def write(script: str) -> str:
    return f'<write path="train.py">\n{script}\n</write>'


class InlinePool:
    """Executes in this process; answers late and in an order of its own."""

    def __init__(self, environment, order_seed: int = 0) -> None:
        self._environment = environment
        self._rng = np.random.default_rng(order_seed)
        self._jobs = []

    def submit(self, job_id, state, reply, edit=None) -> None:
        self._jobs.append((job_id, state, reply))

    def submit_reset(self, job_id, task_id) -> None:
        raise AssertionError("a step starts from a recorded state")

    def poll(self, timeout_s):
        count = int(self._rng.integers(0, len(self._jobs) + 1))
        self._rng.shuffle(self._jobs)
        now, self._jobs = self._jobs[:count], self._jobs[count:]
        return [self._run(*job) for job in now]

    def num_pending(self):
        return len(self._jobs)

    def _run(self, job_id, state, reply):
        try:
            value, error = self._environment.step(state, reply), ""
        except EnvUnavailableError as failure:
            value, error = None, str(failure)
        return JobResult(job_id=job_id, value=value, error=error, seconds=0.25)


@pytest.fixture
def world(tmp_path):
    """Returns what `collect_rollout` needs besides a policy and a pool."""
    tasks = {TASK: make_graded_task(tmp_path / TASK, id=TASK)}
    store = SnapshotStore(tmp_path / "trajectories")
    environment = make_fake_environment(tasks, store.root, EnvConfig(use_cache=False))
    start = environment.reset(TASK)
    state, steps = start.state, []
    for num_right in (22, 24, 26):
        step = environment.step(state, write(f"right {num_right}"))
        state = advance(state, step)
        steps.append(step)
    trajectory = make_trajectory(
        steps=steps,
        start_snapshot=start.state.snapshot,
        start_score=start.state.score,
        start_submission=start.submission,
    )
    path = tmp_path / "expert.jsonl"
    with TrajectoryWriter(path) as writer:
        writer.append(trajectory)
    states = StatePool([TrajectoryFile(path)], tasks)
    return {"states": states, "tasks": tasks, "store": store}, environment


def rollout_config(**ppo):
    settings = {
        "states_per_update": NUM_STATES,
        "minibatch_size": NUM_STATES,
        "micro_batch_size": NUM_STATES,
        "reward": RewardConfig(preset="paper_v1", alpha=1.0),
    }
    return make_config(**(settings | ppo))


def answer_by_seed(request):
    """Some replies improve, some are broken, some are no action at all."""
    return [write("right 40"), write("exit 1"), "I do not know.", write("right 10")][
        request.seed % 4
    ]


def collect(world, answer, *, update=0, order_seed=0, delay=0, config=None, **more):
    parts, environment = world
    return collect_rollout(
        update,
        config=config or rollout_config(),
        policy=FakePolicy(answer, delay=delay),
        workers=InlinePool(environment, order_seed),
        **parts,
        **more,
    )


def comparable(rollout):
    samples = []
    for sample in rollout.samples:
        record = to_json(sample)
        record["step"]["env_s"] = 0.0
        record["reply"]["request_id"] = ""
        samples.append(record)
    return samples


def test_a_rollout_does_not_depend_on_timing(world):
    first = collect(world, answer_by_seed)
    for order_seed in (1, 2):
        other = collect(world, answer_by_seed, order_seed=order_seed, delay=3)
        assert comparable(other) == comparable(first)


def test_updates_draw_other_states_and_seeds(world):
    first, other = (collect(world, answer_by_seed, update=u) for u in (0, 1))
    assert comparable(first) != comparable(other)


def test_replies_to_one_state_stand_together_and_differ_in_seed(world):
    config = rollout_config(states_per_update=3, samples_per_state=2)
    parts, environment = world
    policy = FakePolicy(answer_by_seed)
    rollout = collect_rollout(
        0, config=config, policy=policy, workers=InlinePool(environment), **parts
    )
    ids = [sample.state_id for sample in rollout.samples]
    assert ids[0::2] == ids[1::2]
    assert len({request.seed for request in policy.requests}) == NUM_STATES
    assert all(r.num_shared_turns == len(r.messages) for r in policy.requests)


def test_rewards_are_those_of_the_preset(world):
    rollout = collect(world, answer_by_seed)
    assert len(rollout.kept()) == NUM_STATES
    for sample in rollout.kept().values():
        gain = (sample.step.score_after - sample.step.score_before) / 0.5
        expected = {
            Outcome.SCORED: 1 / (1 + math.exp(-gain)),
            Outcome.SCRIPT_ERROR: 0.0,
            Outcome.INVALID_ACTION: 0.0,
        }[sample.step.outcome]
        assert sample.reward.total == pytest.approx(expected)


def test_our_own_faults_are_dropped_and_counted_not_rewarded(world):
    replies = iter(
        [
            write("unavailable"),
            "error",
            "prompt_too_long",
            write("right 40"),
            write("exit 1"),
            "no action",
        ]
    )

    def answer(request):
        text = next(replies)
        if text not in ("error", "prompt_too_long"):
            return text
        return Reply(request_id=request.id, text="", finish=text, error=text)

    rollout = collect(world, answer)
    assert [isinstance(s, Sample) for s in rollout.samples] == [False] * 3 + [True] * 3
    assert rollout.dropped() == {
        "env_failed": 1,
        "policy_error": 1,
        "prompt_too_long": 1,
    }
    assert [s is None for s in rollout.token_samples()] == [True] * 3 + [False] * 3
    metrics = rollout_metrics(rollout)
    assert metrics["num_dropped"] == 3
    assert metrics["valid_action_rate"] == pytest.approx(2 / 3)
    assert metrics["improving_rate"] == pytest.approx(1 / 3)
    assert metrics["outcome_frac/scored"] == pytest.approx(1 / 3)
    assert metrics["outcome_frac/script_error"] == pytest.approx(1 / 3)
    assert metrics["reply_tokens"] == 1.0


def test_a_rollout_without_any_sample_stops_the_run(world):
    with pytest.raises(
        EnvUnavailableError, match=r"update 7: all 6 samples were dropped.*env_failed"
    ):
        collect(world, lambda request: write("unavailable"), update=7)


def test_a_bug_in_the_environment_is_no_reward(world):
    with pytest.raises(ZeroDivisionError):
        collect(world, lambda request: write("bug"))


def test_records_hold_what_the_report_shows(world):
    rollout = collect(world, answer_by_seed, update=3)
    records = rollout_records(rollout)
    assert [r["sample"] for r in records] == list(range(NUM_STATES))
    for record, sample in zip(records, rollout.samples, strict=True):
        assert record["update"] == 3
        assert record["task"] == TASK
        assert record["state"] == sample.state_id
        assert record["reply"] == sample.reply.text
        assert record["outcome"] == sample.step.outcome.value
        assert record["reward"] == sample.reward.total
        assert sum(record["reward_parts"].values()) == pytest.approx(record["reward"])


def test_token_samples_carry_the_replys_tokens(world):
    rollout = collect(world, answer_by_seed)
    for sample, tokens in zip(rollout.samples, rollout.token_samples(), strict=True):
        assert dataclasses.asdict(tokens) == {
            "prompt": (1, 2),
            "reply": (3,),
            "logprobs": (-0.1,),
            "reward": sample.reward.total,
            "duration_s": sample.duration_s,
        }


def test_a_stored_rollout_comes_back_as_it_was(world, tmp_path):
    replies = iter([write("unavailable")] + [write("right 40")] * 5)
    rollout = collect(world, lambda request: next(replies))
    rollout = dataclasses.replace(rollout, samples=(*rollout.samples, None))
    save_rollout(tmp_path / "ppo" / "rollout-3.json", rollout)
    assert load_rollout(tmp_path / "ppo" / "rollout-3.json") == rollout


def test_replies_can_be_scored_before_the_last_script_has_ended(world):
    num_run, seen = [0], []

    class Environment:
        def step(self, state, reply):
            num_run[0] += 1
            return world[1].step(state, reply)

    def answer(request):
        if request.seed % 4 == 3:
            finish = "prompt_too_long"
            return Reply(request_id=request.id, text="", finish=finish, error=finish)
        return Reply(
            request_id=request.id,
            text=write("right 40"),
            finish="stop",
            prompt_tokens=(1, 2),
            tokens=(request.seed % 1000,),
            logprobs=(-0.5,),
        )

    rollout = collect(
        (world[0], Environment()),
        answer,
        delay=3,
        on_sampled=lambda samples: seen.append((num_run[0], samples)),
    )
    [(num_before, samples)] = seen
    assert num_before < num_run[0]
    final = rollout.token_samples()
    assert [s and s.reply for s in samples] == [s and s.reply for s in final]
    assert all(s is None or s.reward == 0.0 for s in samples)
    seen.clear()
    episodes = rollout_config(mode="episode", episode_steps=3, states_per_update=2)
    play_config = dataclasses.replace(rollout_config(), ppo=episodes.ppo)
    collect(world, answer, config=play_config, on_sampled=seen.append)
    assert seen == []


def test_an_execution_is_drawn_as_long_as_a_worker_was_at_it(world):
    timeline = Timeline()
    collect(world, answer_by_seed, timeline=timeline)
    spans = [s for s in timeline.spans() if s.lane == EXECUTION]
    assert len(spans) == NUM_STATES
    assert all(s.end_s - s.start_s == pytest.approx(0.25) for s in spans)


def play(world, answer, **ppo):
    settings = {"mode": "episode", "episode_steps": 3, "states_per_update": 2}
    return collect(world, answer, config=rollout_config(**(settings | ppo)))


def test_an_episode_is_the_steps_from_the_start_of_a_task(world):
    answers = {0: write("right 30"), 1: write("exit 1"), 2: write("right 35")}
    seen = []

    def answer(request):
        seen.append(request)
        return answers[(len(seen) - 1) // 2]  # both episodes move in lockstep

    rollout = play(world, answer)
    assert len(rollout.samples) == 6
    for first, second, third in (rollout.samples[:3], rollout.samples[3:]):
        start = world[0]["states"].get(0).state
        assert first.step.snapshot_before == start.snapshot
        assert second.state.steps == (first.step,)
        assert third.state.steps == (first.step, second.step)
        assert third.step.score_before == first.step.score_after
        outcomes = [s.step.outcome for s in (first, second, third)]
        assert outcomes == [Outcome.SCORED, Outcome.SCRIPT_ERROR, Outcome.SCORED]


def test_rows_behind_the_end_of_an_episode_are_empty(world):
    rollout = play(world, lambda request: "<submit/>", episode_steps=3)
    kinds = [s is None for s in rollout.samples]
    assert kinds == [False, True, True] * 2
    assert [s is None for s in rollout.token_samples()] == kinds
    assert rollout.dropped().total() == 0


def test_an_episode_that_our_fault_cuts_short_is_dropped_whole(world):
    replies = iter(
        [write("right 30"), write("right 30"), write("unavailable"), write("exit 1")]
        + [write("right 31")] * 2
    )
    rollout = play(world, lambda request: next(replies))
    assert rollout.samples[0].reason == "env_failed"
    assert rollout.samples[1:3] == (None, None)
    assert all(isinstance(s, Sample) for s in rollout.samples[3:])


def test_a_prompt_that_no_longer_fits_ends_an_episode_but_keeps_its_steps(world):
    replies = iter([write("right 30")] * 2 + ["prompt_too_long"] * 2)

    def answer(request):
        text = next(replies)
        if text != "prompt_too_long":
            return text
        return Reply(request_id=request.id, text="", finish=text, error=text)

    rollout = play(world, answer)
    kinds = [type(s).__name__ for s in rollout.samples]
    assert kinds == ["Sample", "NoneType", "NoneType"] * 2


def test_the_gap_penalty_reads_the_test_part_of_training_tasks_only(world):
    reward = RewardConfig(preset="paper_v2", gap_weight=0.5, gap_tolerance=0.0)
    config = rollout_config(reward=reward)
    rollout = collect(world, lambda request: write("right 40"), config=config)
    for sample in rollout.kept().values():
        parts = sample.reward.parts
        assert set(parts) == {"metric", "gap"}
        assert -0.5 <= parts["gap"] <= 0.0
    parts, environment = world
    held_out = {
        k: dataclasses.replace(t, split="held_out") for k, t in parts["tasks"].items()
    }
    states = StatePool(parts["states"]._files, held_out)
    with pytest.raises(AssertionError, match="toy"):
        collect(
            (parts | {"states": states}, environment),
            lambda request: write("right 40"),
            config=config,
        )


def test_derived_seeds_depend_on_every_part():
    seeds = {derive_seed(*p) for p in [(0, 1), (1, 0), (0, 1, 0), ("0/1",), (0, 11)]}
    assert len(seeds) == 4  # (0, 1) and "0/1" are the same text
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derive_seed(0, 1) == derive_seed(0, 1)
