"""Evaluates policies: `python -m launch.evaluate --config=... --workdir=...`.

For every policy of `config.eval.policies`: k trajectories a task, scored on the
hidden test part (eval/<policy>.jsonl), and its step rewards on fresh states
(eval/<policy>.fresh.jsonl). Runs what is missing; `python -m launch.report` reads it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launch import common
from launch.policies import make_policy, stop_reason_of
from launch.pools import open_pool
from mlagent_jax.data.state_pool import StatePool
from mlagent_jax.data.trajectories import TrajectoryFile
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.task import load_tasks
from mlagent_jax.evaluation.costs import add_time
from mlagent_jax.evaluation.records import records_path
from mlagent_jax.evaluation.runner import (
    SEARCH_PREFIX,
    evaluate_fresh_states,
    evaluate_trajectories,
)


def main(run: common.Run) -> None:
    """Evaluates every policy of the config."""
    config, workdir = run.config, run.workdir
    tasks = load_tasks(config, workdir)
    held_in = {task_id: tasks[task_id] for task_id in config.held_in}
    trajectories = workdir / "trajectories"
    store = SnapshotStore(trajectories)
    states = StatePool([TrajectoryFile(trajectories / "fresh.jsonl")], held_in)
    num_states = min(config.eval.fresh_states * len(held_in), len(states))
    with open_pool(run, tasks, store) as pool:
        for name in config.eval.policies:
            # The expert is given ideas where it is taught from, none here.
            num_steps = num_states * config.eval.samples_per_state
            total = len(tasks) * config.eval.trajectories_per_task
            path = records_path(workdir, name)
            policy = make_policy(run, name)
            with (
                common.progress(total, f"eval {name}", "trajectory") as bar,
                _timed(workdir, name),
            ):
                evaluate_trajectories(
                    config,
                    path,
                    policy,
                    tasks=tasks,
                    pool=pool,
                    store=store,
                    on_done=bar.update,
                    stop_reason=stop_reason_of(policy),
                )
            if name != "starter" and not name.startswith(SEARCH_PREFIX):
                with common.progress(num_steps, f"fresh {name}", "step") as bar:
                    evaluate_fresh_states(
                        config,
                        path.with_suffix(".fresh.jsonl"),
                        policy,
                        states=states,
                        tasks=held_in,
                        pool=pool,
                        store=store,
                        on_done=bar.update,
                        stop_reason=stop_reason_of(policy),
                    )
            policy.close()


@contextmanager
def _timed(workdir: Path, policy: str) -> Iterator[None]:
    """Adds the seconds spent inside to the policy's part of the cost ledger."""
    start_s = time.monotonic()
    try:
        yield
    finally:
        add_time(workdir, policy, time.monotonic() - start_s)


if __name__ == "__main__":
    common.run_stage(main)
