"""Tree search: where each step starts, what ends it, and what counts."""

import pytest

from mlagent_jax.config import EnvConfig
from mlagent_jax.config.evaluation import SearchConfig
from mlagent_jax.env.runner import TrajectorySpec, run_trajectories
from mlagent_jax.evaluation.records import score_trajectory
from mlagent_jax.evaluation.search import make_search
from mlagent_jax.types import StepStatus
from tests.env.test_runner import World, content, write
from tests.fakes import FakePolicy, make_graded_task

SUBMIT = "<submit/>"


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, make_graded_task(tmp_path / "task"))


def run(world, replies, search, *, max_steps=None):
    """Runs one search of a policy that gives `replies` in turn."""
    replies = [write(f"right {r}\n") if isinstance(r, int) else r for r in replies]
    policy = FakePolicy(lambda request: replies[len(policy.requests) - 1])
    world.env = EnvConfig(max_steps=max_steps or len(replies))
    (trajectory,) = run_trajectories(
        [TrajectorySpec(id="toy/tree/0", task_id="toy", seed=3)],
        policy=policy,
        make_attempt=make_search(search, world.tasks),
        **world.arguments(),
    )
    return trajectory


def parents(trajectory):
    """For each step the number of the step whose result it started from, 0: starter."""
    made = {trajectory.start_snapshot: 0}
    found = []
    for number, step in enumerate(trajectory.steps, start=1):
        found.append(made[step.snapshot_before])
        made.setdefault(step.snapshot_after, number)
    return found


def test_drafts_start_at_the_starter_then_the_best_is_improved(world):
    search = SearchConfig(num_drafts=2, debug_prob=0.0)
    trajectory = run(world, [22, 30, 25, 36, 31], search)
    # Drafts 1 and 2; step 3 improves the better draft and fails to; 4 tries it again
    # and is the new best, which 5 goes on from.
    assert parents(trajectory) == [0, 0, 2, 2, 4]
    assert trajectory.status is StepStatus.TRUNCATED_STEPS


def test_a_failed_solution_is_mended_until_it_has_failed_too_often(world):
    search = SearchConfig(num_drafts=1, debug_prob=1.0, max_debug_depth=2)
    broken = [write(f"print {i}\nexit 1\n") for i in range(3)]
    trajectory = run(world, [*broken, 30, 31], search)
    # 2 and 3 mend; after three failures in a row the branch is given up.
    assert parents(trajectory) == [0, 1, 2, 0, 4]


def test_what_a_draft_reads_stays_in_its_prompt_and_an_undo_moves_nothing(world):
    search = SearchConfig(num_drafts=1, debug_prob=0.0)
    trajectory = run(world, ["<list/>", "nonsense", 30, "<undo/>", 35], search)
    assert parents(trajectory)[:3] == [0, 0, 0]
    assert trajectory.steps[4].snapshot_before == trajectory.steps[2].snapshot_after
    assert trajectory.steps[4].score_before == trajectory.steps[2].score_after


def test_a_submit_closes_its_branch_and_the_last_one_ends_the_search(world):
    search = SearchConfig(num_drafts=2, debug_prob=0.0)
    trajectory = run(world, [30, 25, SUBMIT, SUBMIT, 1], search, max_steps=9)
    assert len(trajectory.steps) == 4
    assert trajectory.status is StepStatus.SUBMITTED
    assert parents(trajectory) == [0, 0, 1, 2]


def test_the_best_node_by_selection_counts(world):
    search = SearchConfig(num_drafts=3, debug_prob=0.0)
    trajectory = run(world, [36, 22, 30], search)
    task = world.tasks["toy"]
    record = score_trajectory(trajectory, task, world.store, (0.0,) * 3, "selection")
    assert record.final_score == record.selected_score == pytest.approx(36 / 40)
    last = score_trajectory(trajectory, task, world.store, (0.0,) * 3, "last")
    assert last.final_score == pytest.approx(30 / 40)


def test_the_budget_of_steps_is_that_of_a_trajectory_and_searches_repeat(world):
    search = SearchConfig(num_drafts=2, debug_prob=0.5)
    replies = [22, write("exit 1\n"), 30, "x", 24, write("exit 2\n"), 31, 25]
    first = run(world, replies, search, max_steps=8)
    world.make_pool(seed=5)
    assert len(first.steps) == 8
    assert content(run(world, replies, search, max_steps=8)) == content(first)
