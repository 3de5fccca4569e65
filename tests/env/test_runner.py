"""The loops: how trajectories end, seeds, drops, and independence of timing."""

import dataclasses
import logging
import random

import pytest

from mlagent_jax.config import EnvConfig, PromptConfig
from mlagent_jax.env.pool_jobs import JobResult
from mlagent_jax.env.runner import (
    StepJob,
    TrajectorySpec,
    request_seed,
    run_steps,
    run_trajectories,
)
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.worker_pool import WorkerPool
from mlagent_jax.errors import EnvUnavailableError
from mlagent_jax.policy.base import Reply
from mlagent_jax.text.actions import render_action
from mlagent_jax.types import Action, ActionKind, Outcome, StepStatus
from tests.fakes import FakePolicy, make_fake_environment, make_graded_task

PROMPT = PromptConfig(style="brief", history_steps=0)


def write(script):
    action = Action(kind=ActionKind.WRITE, path="train.py", content=script)
    return render_action(action)


def improve(request):
    """A policy that depends on its seed alone, and sometimes fails."""
    rng = random.Random(request.seed)
    return rng.choice([write(f"right {rng.randrange(41)}\n"), "<undo/>", "nonsense"])


class InlinePool:
    """A pool without processes that finishes jobs late and in a shuffled order."""

    def __init__(self, environment, seed=0):
        self._environment = environment
        self._rng = random.Random(seed)
        self._jobs = []
        self.num_resets = 0

    def submit(self, job_id, state, reply, edit=None):
        self._jobs.append((job_id, self._environment.step, (state, reply)))

    def submit_reset(self, job_id, task_id):
        self.num_resets += 1
        self._jobs.append((job_id, self._environment.reset, (task_id,)))

    def num_pending(self):
        return len(self._jobs)

    def poll(self, timeout_s):
        self._rng.shuffle(self._jobs)
        num_done = self._rng.randrange(len(self._jobs) + 1)
        due, self._jobs = self._jobs[:num_done], self._jobs[num_done:]
        return [self._finish(*job) for job in due]

    def _finish(self, job_id, method, arguments):
        value, error = None, ""
        try:
            value = method(*arguments)
        except EnvUnavailableError as unavailable:
            error = str(unavailable)
        return JobResult(job_id=job_id, value=value, error=error, seconds=0.0)


@pytest.fixture(name="world")
def fixture_world(tmp_path):
    return World(tmp_path, make_graded_task(tmp_path / "task"))


class World:
    """Everything that the runners take besides specs and policy."""

    def __init__(self, root, *tasks):
        self.tasks = {task.id: task for task in tasks}
        self.store = SnapshotStore(root / "store")
        self.env = EnvConfig(max_steps=4)
        self.make_pool()

    def make_pool(self, seed=0):
        environment = make_fake_environment(self.tasks, self.store.root, self.env)
        self.pool = InlinePool(environment, seed)

    def arguments(self, num_in_flight=3, prompt=PROMPT):
        return {
            "pool": self.pool,
            "tasks": self.tasks,
            "store": self.store,
            "prompt": prompt,
            "env": self.env,
            "num_in_flight": num_in_flight,
        }

    def run(self, specs, answer, *, delay=0, **kwargs):
        policy = FakePolicy(answer, delay=delay)
        arguments = self.arguments(**kwargs)
        return list(run_trajectories(specs, policy=policy, **arguments)), policy


def specs(num, **kwargs):
    return [
        TrajectorySpec(id=f"toy/{i}", task_id="toy", seed=i, **kwargs)
        for i in range(num)
    ]


def content(trajectory):
    """A trajectory without its timings."""
    steps = tuple(
        dataclasses.replace(
            step,
            env_s=0.0,
            execution=step.execution
            and dataclasses.replace(step.execution, is_cached=False),
        )
        for step in trajectory.steps
    )
    usage = {k: v for k, v in trajectory.usage.items() if not k.endswith("_s")}
    return dataclasses.replace(trajectory, steps=steps, usage=usage)


def test_a_trajectory_ends_after_its_number_of_steps(world):
    (trajectory,), policy = world.run(specs(1), lambda _: write("right 30\n"))
    assert trajectory.status is StepStatus.TRUNCATED_STEPS
    assert trajectory.steps[-1].status is StepStatus.TRUNCATED_STEPS
    assert trajectory.steps[0].status is StepStatus.ONGOING
    assert len(trajectory.steps) == len(policy.requests) == 4
    assert trajectory.start_score == 0.5
    assert trajectory.start_submission is not None
    assert trajectory.steps[0].snapshot_before == trajectory.start_snapshot
    (short,), _ = world.run(specs(1, max_steps=1), lambda _: "<list/>")
    assert len(short.steps) == 1


def test_a_trajectory_ends_when_the_agent_submits(world):
    answers = iter([write("right 30\n"), "<submit/>"])
    (trajectory,), _ = world.run(specs(1), lambda _: next(answers))
    assert trajectory.status is StepStatus.SUBMITTED
    assert [step.outcome for step in trajectory.steps] == [Outcome.SCORED, Outcome.INFO]


def test_a_prompt_that_no_longer_fits_ends_it(world):
    def answer(request):
        if len(answered) == 2:
            return Reply(request_id=request.id, text="", finish="prompt_too_long")
        answered.append(request)
        return "<list/>"

    answered = []
    (trajectory,), _ = world.run(specs(1), answer)
    assert trajectory.status is StepStatus.TRUNCATED_TOKENS
    assert len(trajectory.steps) == 2
    assert trajectory.steps[-1].status is StepStatus.TRUNCATED_TOKENS


def test_time_is_that_of_its_own_replies_and_scripts(world):
    # 0.25 s a reply and 0.5 s a script: the second step passes one second.
    world.env = EnvConfig(max_steps=9, max_time_s=1.0)
    answers = iter(write(f"right {i}\n") for i in range(9))
    (trajectory,), _ = world.run(specs(1), lambda _: next(answers))
    assert trajectory.status is StepStatus.TRUNCATED_TIME
    assert len(trajectory.steps) == 2


def test_usage_is_counted(world):
    (trajectory,), _ = world.run(specs(1), lambda _: write("right 30\n"))
    assert trajectory.usage["prompt_tokens"] == 8
    assert trajectory.usage["reply_tokens"] == 4
    assert trajectory.usage["policy_s"] == 1.0
    assert trajectory.usage["script_s"] == 0.5  # the same text again is no change
    assert trajectory.usage["env_s"] > 0
    assert trajectory.usage["wall_s"] > 0


def test_counters_of_an_endpoint_replace_missing_tokens(world):
    def answer(request):
        usage = {"prompt_tokens": 70.0, "reply_tokens": 9.0, "cost_usd": 0.01}
        return Reply(
            request_id=request.id, text="<submit/>", finish="stop", usage=usage
        )

    (trajectory,), _ = world.run(specs(1), answer)
    assert trajectory.usage["prompt_tokens"] == 70
    assert trajectory.usage["cost_usd"] == 0.01


def test_content_depends_on_seeds_and_not_on_timing(world):
    expected = None
    for num_in_flight, delay, pool_seed in [(1, 0, 0), (3, 2, 1), (8, 5, 2)]:
        world.make_pool(pool_seed)
        trajectories, _ = world.run(
            specs(8), improve, delay=delay, num_in_flight=num_in_flight
        )
        found = {t.id: content(t) for t in trajectories}
        expected = expected or found
        assert found == expected
    assert len({t.steps[0].reply for t in expected.values()}) > 2


def test_every_step_has_its_own_seed(world):
    _, policy = world.run(specs(2), lambda _: "<list/>")
    seeds = [request.seed for request in policy.requests]
    expected = {request_seed(s, i) for s in range(2) for i in range(4)}
    assert set(seeds) == expected
    assert len(expected) == 8
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_at_most_so_many_are_in_flight_and_specs_are_read_as_needed(world):
    taken = []

    def stream():
        for spec in specs(10):
            taken.append(spec)
            yield spec

    policy = FakePolicy(lambda _: "<submit/>")
    iterator = run_trajectories(
        stream(), policy=policy, **world.arguments(num_in_flight=2)
    )
    next(iterator)
    assert len(taken) <= 3
    assert len(list(iterator)) == 9
    assert world.pool.num_resets == 1


def test_the_prompt_shows_the_script_of_its_window(world):
    answers = iter([write("right 30\n"), write("right 35\n"), "<submit/>"] * 2)
    _, policy = world.run(specs(1), lambda _: next(answers))
    assert [r.script for r in policy.requests] == [
        "print start\nright 20\n",
        "right 30\n",
        "right 35\n",
    ]
    assert "right 35" in policy.requests[2].messages[-1].content
    prompt = PromptConfig(style="brief", history_steps=1)
    _, policy = world.run(specs(1), lambda _: next(answers), prompt=prompt)
    assert "right 30" in policy.requests[2].messages[1].content


def test_ideas_reach_the_prompt(world):
    _, policy = world.run(specs(1, ideas=("try a forest",)), lambda _: "<submit/>")
    assert any("try a forest" in m.content for m in policy.requests[0].messages)


def test_our_failures_drop_the_trajectory_with_a_warning(world, caplog):
    def answer(request):
        if request.id == "toy/1":
            return write("unavailable\n")
        if request.id == "toy/2":
            return Reply(request_id=request.id, text="", finish="error", error="gone")
        return "<submit/>"

    with caplog.at_level(logging.WARNING):
        trajectories, _ = world.run(specs(4), answer)
    assert sorted(t.id for t in trajectories) == ["toy/0", "toy/3"]
    assert "toy/1 is dropped: the disk is full" in caplog.text
    assert "toy/2 is dropped: gone" in caplog.text
    assert "2 trajectories were dropped" in caplog.text


def test_a_failed_start_costs_only_who_asked_for_it(world, caplog):
    reset = world.pool._environment.reset

    def fail_first(task_id):
        if world.pool.num_resets == 1:
            raise EnvUnavailableError("no room")
        return reset(task_id)

    world.pool._environment.reset = fail_first
    trajectories, _ = world.run(specs(3), lambda _: "<submit/>")
    assert sorted(t.id for t in trajectories) == ["toy/1", "toy/2"]
    assert "toy/0 is dropped: no room" in caplog.text


def test_a_removed_entry_script_is_shown_as_empty(world):
    state = world.pool._environment.reset("toy").state
    state = dataclasses.replace(state, snapshot=world.store.put({"a.py": b""}))
    policy = FakePolicy(lambda _: "<list/>")
    job = StepJob(id="x", state=state, seed=0)
    list(run_steps([job], policy=policy, **world.arguments()))
    assert policy.requests[0].script == ""


def test_single_steps_are_taken_from_given_states(world, caplog):
    def answer(request):
        if request.id == "job1":
            return Reply(request_id=request.id, text="", finish="prompt_too_long")
        if request.id == "job2":
            return write("unavailable\n")
        return write(f"right {request.seed}\n")

    state = world.pool._environment.reset("toy").state
    jobs = [StepJob(id=f"job{i}", state=state, seed=30 + i) for i in range(6)]
    policy = FakePolicy(answer, delay=3)
    found = {
        job.id: (reply, record)
        for job, reply, record in run_steps(jobs, policy=policy, **world.arguments())
    }
    assert sorted(found) == [f"job{i}" for i in range(6)]
    assert found["job1"][1] is None
    assert found["job2"][1] is None
    assert found["job5"][0].tokens == (3,)
    assert found["job4"][1].score_after == 34 / 40
    assert "step job2 has no record: the disk is full" in caplog.text


@pytest.mark.parametrize("history_steps", [None, 2, 0])
def test_shared_turns_are_those_that_every_prompt_of_the_task_has(world, history_steps):
    prompt = dataclasses.replace(PROMPT, history_steps=history_steps)
    _, policy = world.run(specs(6), improve, prompt=prompt)
    shared = {r.messages[: r.num_shared_turns] for r in policy.requests}
    # The system turn alone where the user turn tells of older steps; else both.
    expected = {1, 2} if history_steps in (2, 0) else {2}
    assert {len(turns) for turns in shared} == expected
    assert len(shared) == len(expected)


def test_jobs_that_start_in_one_state_share_the_whole_prompt(world):
    state = world.pool._environment.reset("toy").state
    policy = FakePolicy(lambda _: "<list/>")
    jobs = [
        StepJob(id=f"{i}", state=state, seed=i, has_siblings=True) for i in range(2)
    ]
    list(run_steps(jobs, policy=policy, **world.arguments()))
    assert all(r.num_shared_turns == len(r.messages) for r in policy.requests)


def test_ids_are_unique_and_the_loop_needs_idle_partners(world):
    policy = FakePolicy(lambda _: "<list/>")
    iterator = run_trajectories(
        [*specs(1), *specs(1)], policy=policy, **world.arguments()
    )
    with pytest.raises(ValueError, match="two jobs share the id 'toy/0'"):
        list(iterator)
    with pytest.raises(ValueError, match="must be idle"):
        list(run_steps([], policy=policy, **world.arguments()))


def test_processes_give_the_same_content_as_one_thread(world, tmp_path):
    expected, _ = world.run(specs(4), improve)
    with WorkerPool(
        world.tasks, tmp_path / "other", world.env, make=make_fake_environment
    ) as pool:
        arguments = world.arguments() | {
            "pool": pool,
            "store": SnapshotStore(tmp_path / "other"),
        }
        policy = FakePolicy(improve, delay=2)
        found = list(run_trajectories(specs(4), policy=policy, **arguments))
    assert {t.id: content(t) for t in found} == {t.id: content(t) for t in expected}
