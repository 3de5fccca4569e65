"""Prepares the data of a run's tasks: `python -m launch.prepare --config=...`.

Writes `<workdir>/tasks/<task>/`: public files for the agent, hidden labels for the
grader, hashes of both. A task that is there already is only checked, and so is real
data (`real_data` of the config), which `python -m launch.tasks import` prepares.
"""

from launch import common
from mlagent_jax.env.task import (
    imported_dir,
    load_tasks,
    prepare_task,
    prepared_dir,
    task_folders,
)


def main(run: common.Run) -> None:
    """Prepares or checks every task of the config."""
    folders = task_folders(run.config)
    with common.progress(len(folders), "prepare", "task") as bar:
        for _, _, folder in folders:
            if imported_dir(run.config, folder) is None:
                prepare_task(folder, prepared_dir(run.config, run.workdir, folder))
            bar.update()
    load_tasks(run.config, run.workdir)


if __name__ == "__main__":
    common.run_stage(main)
