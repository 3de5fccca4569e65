"""States of the policy's own traces: which there are, how they are drawn, resuming."""

import dataclasses
import json
from collections import Counter

import pytest

from mlagent_jax.config import PoolConfig, PpoConfig
from mlagent_jax.data.state_pool import StatePool
from mlagent_jax.data.trajectories import TrajectoryFile, TrajectoryWriter
from mlagent_jax.env.reward import Reward
from mlagent_jax.policy.base import Reply
from mlagent_jax.rl.own_states import OwnStates, headroom_left
from mlagent_jax.rl.rollout import DroppedSample, Rollout, Sample
from mlagent_jax.types import StepStatus
from tests.samples import make_edit, make_state, make_step, make_task, make_trajectory

STEP = make_step(make_edit("a\n", "b\n"), 0.5, 0.6)
MAX_STEPS = 3


def make_sample(
    reward, *, after=0.6, num_steps=0, status=StepStatus.ONGOING, task="toy"
):
    step = make_step(make_edit("a\n", "b\n"), 0.5, after)
    return Sample(
        state_id="x@0",
        task=make_task(id=task),
        reply=Reply(request_id="0", text="", finish="stop"),
        step=dataclasses.replace(step, status=status),
        reward=Reward(total=reward, parts={}),
        state=make_state((STEP,) * num_steps),
    )


@pytest.fixture
def make_pool(tmp_path):
    path = tmp_path / "expert.jsonl"
    with TrajectoryWriter(path) as writer:
        writer.append(make_trajectory("toy/expert/0", (STEP,) * 8))
    tasks = {"toy": make_task(), "flat": make_task(id="flat")}
    experts = StatePool([TrajectoryFile(path)], {"toy": tasks["toy"]})

    def make(first=0, samples_per_state=1, **pool):
        cfg = PpoConfig(
            states_per_update=4 // samples_per_state,
            samples_per_state=samples_per_state,
            minibatch_size=4,
            micro_batch_size=4,
            pool=PoolConfig(**({"own_frac": 0.5} | pool)),
        )
        own = OwnStates(experts, tasks, tmp_path / "own.jsonl", cfg, MAX_STEPS)
        own.open(first)
        return own

    return make


def test_without_own_traces_all_states_are_the_experts(make_pool):
    assert all("expert" in s.id for s in make_pool().sample(0, 4))


def test_states_that_an_action_led_to_are_drawn_as_the_config_says(make_pool):
    own = make_pool()
    own.add(Rollout(update=0, samples=tuple(make_sample(r) for r in (0.0, 1.0, 0.5))))
    drawn = own.sample(7, 4)
    assert Counter(s.id.split("/")[0] for s in drawn) == {"toy": 2, "own": 2}
    for state in drawn[2:]:
        assert len(state.state.steps) == 1
        assert state.state.score == 0.6
    assert [s.id for s in own.sample(7, 4)] == [s.id for s in drawn]


def test_what_ended_or_is_at_its_last_step_starts_nothing(make_pool):
    own = make_pool(own_frac=1.0)
    samples = (
        make_sample(0.0, status=StepStatus.SUBMITTED),
        make_sample(1.0, num_steps=MAX_STEPS - 1),
        DroppedSample(state_id="x@0", reason="env_failed"),
        make_sample(0.5, num_steps=MAX_STEPS - 2),
    )
    own.add(Rollout(update=0, samples=samples))
    ids = [s.id for s in own.sample(0, 4)]
    assert [i for i in ids if i.startswith("own")] == ["own/0/3"]


def test_tasks_take_turns_however_large_their_rewards_are(make_pool):
    # "toy" has spread rewards and many states, "flat" neither.
    samples = [make_sample(float(i % 2)) for i in range(20)]
    samples += [make_sample(0.5, task="flat") for _ in range(6)]
    for by_learnability in (True, False):
        own = make_pool(own_frac=1.0, by_learnability=by_learnability)
        own.add(Rollout(update=0, samples=tuple(samples)))
        assert Counter(s.task.id for s in own.sample(1, 10)) == {"toy": 5, "flat": 5}
        # What one task lacks the other one gives.
        assert Counter(s.task.id for s in own.sample(1, 18)) == {"toy": 12, "flat": 6}


def test_a_task_draws_in_proportion_to_learnability(make_pool):
    # Of one variance, so headroom decides: 0.5 is the baseline, 0.9 the best.
    samples = [
        make_sample(float(i % 2), after=(0.5, 0.8)[i // 2 % 2]) for i in range(40)
    ]
    share = {}
    for by_learnability in (True, False):
        own = make_pool(own_frac=1.0, by_learnability=by_learnability)
        own.add(Rollout(update=0, samples=tuple(samples)))
        drawn = [own.sample(seed, 1)[0].state.score for seed in range(2_000)]
        share[by_learnability] = sum(score == 0.5 for score in drawn) / len(drawn)
    # 20 states of weight 1 beside 20 of weight 1/4; deviation 0.01.
    assert share[True] == pytest.approx(0.8, abs=0.05)
    assert share[False] == pytest.approx(0.5, abs=0.05)


def test_with_several_samples_a_state_its_own_spread_counts(make_pool):
    own = make_pool(own_frac=1.0, samples_per_state=2)
    rewards = (0.5, 0.5, 0.0, 1.0)
    own.add(Rollout(update=0, samples=tuple(make_sample(r) for r in rewards)))
    assert {s.id for s in own.sample(0, 2)} == {"own/0/2", "own/0/3"}


def test_headroom_is_what_is_left_to_the_best_score():
    task = make_task()  # 0.5 to 0.9
    expected = [(0.5, 1.0), (0.7, 0.5), (0.9, 0.0), (1.0, 0.0), (0.1, 1.0)]
    for score, left in expected:
        assert headroom_left(task, score) == pytest.approx(left)
    lower = make_task(direction="min", baseline=2.0, best=1.0)
    assert headroom_left(lower, 1.25) == pytest.approx(0.25)
    assert headroom_left(make_task(best=0.5), 0.5) == 0.0


def test_a_resumed_run_draws_what_it_would_have_drawn(make_pool, tmp_path):
    rollouts = [
        Rollout(update=u, samples=tuple(make_sample(r + u) for r in (0.0, 1.0, 0.5)))
        for u in range(3)
    ]
    straight = make_pool()
    for rollout in rollouts:
        straight.add(rollout)
    straight.close()
    resumed = make_pool(first=2)  # update 2 is made again
    assert {json.loads(x)["update"] for x in (tmp_path / "own.jsonl").open()} == {0, 1}
    resumed.add(rollouts[2])
    for seed in range(5):
        expected = [s.id for s in straight.sample(seed, 6)]
        assert [s.id for s in resumed.sample(seed, 6)] == expected


def test_only_the_newest_states_are_kept(make_pool):
    own = make_pool(own_frac=1.0, own_size=2)
    for update in range(3):
        samples = tuple(make_sample(r) for r in (0.0, 1.0))
        own.add(Rollout(update=update, samples=samples))
    drawn = {s.id for s in own.sample(0, 2)}
    assert drawn == {"own/2/0", "own/2/1"}
