"""Builds the data of every task: `python -m launch.prepare --config=...`.

Writes <workdir>/tasks/<task>/{public,private,task.json} for the held-in and held-out
tasks of the config. Done before, it only checks the hashes.
"""

from pathlib import Path

from launch import common
from mlagent_jax.env.task import prepare_task


def main(run: common.Run) -> None:
    """Prepares all tasks of the config."""
    config = run.config
    task_ids = (*config.held_in, *config.held_out)
    with common.progress(len(task_ids), "prepare", "task") as bar:
        for task_id in task_ids:
            folder = Path(config.task_root) / task_id
            prepare_task(folder, run.workdir / "tasks" / task_id)
            bar.update(1)


if __name__ == "__main__":
    common.run_stage(main)
