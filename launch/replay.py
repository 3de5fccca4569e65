"""Repeats recorded trajectories and reports the first divergence of each.

    python -m launch.replay runs/quickstart/trajectories/expert.jsonl
    python -m launch.replay runs/quickstart/eval/ppo.jsonl --id=digits/ppo/000

Every step is carried out again, in the sandbox and without the execution cache, from
the recorded reply (and the recorded answer of the editor in profile mlab). The task's
data and the configuration come from the run directory that the file is in. Nothing
there is changed.

Exit status: 0 if every step came out as recorded, 1 if one did not, 2 if the file, the
task or the machine does not allow to tell.
"""

import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging

from launch import common, exits
from mlagent_jax.env.environment import Environment
from mlagent_jax.env.executor import Executor
from mlagent_jax.env.replay import Divergence, replay_trajectory
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.task import load_task, prepared_dir
from mlagent_jax.errors import ConfigError, DataError, MlAgentError
from mlagent_jax.types import Task, Trajectory, from_json

_ID = flags.DEFINE_multi_string(
    "id", [], "Only the trajectory of this id; may be repeated. Default: all."
)
_MAX_SHOWN_CHARS = 600


def find_run(path: Path) -> common.Run:
    """Returns the run directory that a file is in, with its configuration.

    Raises:
      ConfigError: there is no file, or none of the folders above has a run.json.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    for folder in path.resolve().parents:
        if (folder / "run.json").is_file():
            return common.recorded_run(folder)
    raise ConfigError(
        f"{path}: no run.json in any folder above; a record is replayed where it was "
        "made, beside its task data"
    )


def read_trajectories(path: Path, ids: list[str]) -> Iterator[Trajectory]:
    """Yields the trajectories of a file, those of evaluation records too.

    Raises:
      DataError: a line is damaged or of an unknown format, or an id is not there.
    """
    missing = set(ids)
    for number, line in enumerate(path.read_text().splitlines(), 1):
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: damaged line: {error}") from error
        if isinstance(value, dict) and "trajectory" in value:
            value = value["trajectory"]
        trajectory = from_json(Trajectory, value, where)
        if not ids or trajectory.id in ids:
            missing.discard(trajectory.id)
            yield trajectory
    if missing:
        raise DataError(f"{path}: no trajectory {', '.join(sorted(missing))}")


def replay_file(path: Path, ids: list[str]) -> int:
    """Replays trajectories of a file and prints what came of each.

    Returns:
      How many of them diverged.

    Raises:
      DataError: a record cannot be repeated here.
    """
    run = find_run(path)
    cfg = run.config.env
    num_diverged = 0
    environments: dict[tuple[str, str], Environment] = {}
    scratch = tempfile.mkdtemp(prefix="mlagent-replay-")
    try:
        for trajectory in read_trajectories(path, ids):
            profile = trajectory.steps[0].profile if trajectory.steps else cfg.profile
            key = (trajectory.task_id, profile)
            if key not in environments:
                task = _load_task(run, trajectory.task_id)
                environments[key] = Environment(
                    {task.id: task},
                    SnapshotStore(Path(scratch)),
                    Executor({task.id: task}, cfg),
                    dataclasses.replace(cfg, profile=profile),
                )
            found = replay_trajectory(trajectory, environments[key])
            num_diverged += found is not None
            print(format_result(trajectory, found), flush=True)
    finally:
        for environment in environments.values():
            environment.close()
        shutil.rmtree(scratch, ignore_errors=True)
    return num_diverged


def format_result(trajectory: Trajectory, found: Divergence | None) -> str:
    """Returns the lines about one trajectory."""
    if found is None:
        return f"{trajectory.id}: same in all {len(trajectory.steps)} steps"
    expected, got = _shown(found.expected), _shown(found.got)
    where = f"step {found.step}" if found.step else "the start"
    return (
        f"{trajectory.id}: DIVERGES at {where} in {found.field}\n"
        f"  expected: {expected}\n  got:      {got}"
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}..."


def _load_task(run: common.Run, task_id: str) -> Task:
    folder = Path(run.config.task_root) / task_id
    return load_task(folder, prepared_dir(run.config, run.workdir, folder))


def _main(argv: list[str]) -> None:
    absl_logging.set_verbosity(absl_logging.WARNING)
    if len(argv) != 2:
        exits.fail("expected one file of trajectories; --help explains")
    try:
        num_diverged = replay_file(Path(argv[1]), list(_ID.value))
    except MlAgentError as error:
        exits.fail(str(error))
    else:
        sys.exit(1 if num_diverged else 0)


if __name__ == "__main__":
    app.run(_main)
