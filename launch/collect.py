"""Collects expert trajectories: `python -m launch.collect --config=... --workdir=...`.

Writes trajectories/expert.jsonl, fresh.jsonl, ideas.json and the workspaces (packs/,
blobs/) in the run directory; the same command goes on with what is missing.
"""

from launch import common
from launch.idea_sources import idea_pools
from launch.policies import make_policy, stop_reason_of
from launch.pools import open_pool
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.task import load_tasks
from mlagent_jax.explore.collect import collect


def main(run: common.Run) -> None:
    """Runs the expert on every held-in task."""
    config, folder = run.config, run.workdir / "trajectories"
    tasks = load_tasks(config, run.workdir)
    held_in = {task_id: tasks[task_id] for task_id in config.held_in}
    cfg = config.collect
    total = len(held_in) * (cfg.trajectories_per_task + cfg.fresh_per_task)
    store = SnapshotStore(folder)
    ideas = idea_pools(run, held_in, folder)
    policy = make_policy(run, "expert")
    try:
        with (
            open_pool(run, held_in, store) as pool,
            common.progress(total, "collect", "trajectory") as bar,
        ):
            collect(
                config,
                folder,
                policy=policy,
                pool=pool,
                tasks=held_in,
                store=store,
                on_done=bar.update,
                stop_reason=stop_reason_of(policy),
                ideas=ideas,
            )
    finally:
        policy.close()


if __name__ == "__main__":
    common.run_stage(main)
