"""The states of step-wise RL: every prefix of every recorded trajectory.

Paper A.5: the state distribution is frozen to the expert's. States are numbered
in the order of trajectory ids, so the pool does not depend on the order in which
trajectories were finished. Trajectories stay on the disk; the pool keeps numbers.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mlagent_jax.data.task_hashes import check_task_hashes
from mlagent_jax.data.trajectories import TrajectoryFile
from mlagent_jax.env.advance import advance, start_state
from mlagent_jax.errors import DataError
from mlagent_jax.types import State, Task, Trajectory


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolState:
    """A state of the pool with its task.

    Attributes:
      id: "<trajectory id>@<number of steps before the state>".
      task: task of the state.
      state: where one action starts.
    """

    id: str
    task: Task
    state: State


@dataclasses.dataclass(frozen=True)
class _Key:
    file: int
    trajectory: int
    num_steps: int


class StatePool:
    """All states before a step of the trajectories in some files.

    Args:
      files: trajectory files; their ids must not overlap.
      tasks: task id -> task as it is now.

    Raises:
      DataError: a trajectory was recorded on a task that is not in `tasks` or has
        another version or other contents now, an id occurs in two files, or there
        is no state.
    """

    def __init__(
        self, files: Sequence[TrajectoryFile], tasks: Mapping[str, Task]
    ) -> None:
        self._files = tuple(files)
        self._tasks = dict(tasks)
        self._keys: list[_Key] = []
        self._of_task: dict[str, list[int]] = {}
        self._starts_of_task: dict[str, list[int]] = {}
        seen: dict[str, TrajectoryFile] = {}
        for folder in {file.path.parent for file in self._files}:
            check_task_hashes(folder, self._tasks)
        for file_number, file in enumerate(self._files):
            for i, trajectory in enumerate(file):
                if trajectory.id in seen:
                    raise DataError(
                        f"trajectory {trajectory.id!r} is in {seen[trajectory.id].path}"
                        f" and in {file.path}"
                    )
                seen[trajectory.id] = file
                _check_task(trajectory, self._tasks, file)
                indices = self._of_task.setdefault(trajectory.task_id, [])
                if trajectory.steps:
                    starts = self._starts_of_task.setdefault(trajectory.task_id, [])
                    starts.append(len(self._keys))
                for num_steps in range(len(trajectory.steps)):
                    indices.append(len(self._keys))
                    self._keys.append(_Key(file_number, i, num_steps))
        if not self._keys:
            names = [str(file.path) for file in self._files]
            raise DataError(f"no state in {names}; has the collect stage finished?")

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, i: int) -> PoolState:
        """Returns state number `i`, read from the disk."""
        key = self._keys[i]
        trajectory = self._files[key.file].read(key.trajectory)
        return PoolState(
            id=f"{trajectory.id}@{key.num_steps}",
            task=self._tasks[trajectory.task_id],
            state=state_before(trajectory, key.num_steps),
        )

    def sample(self, seed: int, n: int) -> list[PoolState]:
        """Returns `n` random states, as many of each task as the pool allows.

        The same seed draws the same states. No state comes twice before every
        state of the pool came once.
        """
        return self._sample_from(self._of_task, seed, n)

    def sample_starts(self, seed: int, n: int) -> list[PoolState]:
        """Returns `n` random states before a first step, likewise."""
        return self._sample_from(self._starts_of_task, seed, n)

    def _sample_from(
        self, of_task: Mapping[str, list[int]], seed: int, n: int
    ) -> list[PoolState]:
        rng = np.random.default_rng(seed)
        chosen: list[int] = []
        while len(chosen) < n:
            shuffled = {
                task: rng.permutation(of_task[task]).tolist()
                for task in sorted(of_task)
            }
            chosen += take_in_turns(shuffled, rng, n - len(chosen))
        return [self.get(i) for i in chosen]


def take_in_turns(
    of_task: Mapping[str, Sequence[int]], rng: np.random.Generator, n: int
) -> list[int]:
    """Returns up to `n` states, taking one of each task in turn.

    Args:
      of_task: task id -> states; a task gives its last one first.
      rng: deals out the turns of each round.
      n: how many are wanted.
    """
    queues = [list(states) for states in of_task.values()]
    chosen: list[int] = []
    while len(chosen) < n and any(queues):
        for k in rng.permutation(len(queues)):
            if queues[k] and len(chosen) < n:
                chosen.append(queues[k].pop())
    return chosen


def state_before(trajectory: Trajectory, num_steps: int) -> State:
    """Returns the state of a trajectory after its first `num_steps` steps."""
    state = start_state(trajectory)
    for step in trajectory.steps[:num_steps]:
        state = advance(state, step)
    return state


def _check_task(
    trajectory: Trajectory, tasks: Mapping[str, Task], file: TrajectoryFile
) -> None:
    where = f"{file.path}: trajectory {trajectory.id!r}"
    task = tasks.get(trajectory.task_id)
    if task is None:
        raise DataError(
            f"{where} is of task {trajectory.task_id!r}, which this run does not have; "
            f"its tasks: {sorted(tasks)}"
        )
    if task.version != trajectory.task_version:
        raise DataError(
            f"{where} was recorded on version {trajectory.task_version} of task "
            f"{task.id!r}, which is version {task.version} now; collect again into "
            "another workdir"
        )
