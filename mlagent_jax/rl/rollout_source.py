"""Where the learner's rollouts come from: collected in turn, or one update ahead.

With `ppo.max_staleness = 1` the rollout of update k + 1 is collected while the update
k runs, by the policy that this update starts from: execution hides behind learning,
and a sample is never more than one update old. What is in flight when a checkpoint is
written goes to the disk beside it, so a run that was killed goes on with the very same
samples.
"""

import json
import os
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mlagent_jax.errors import DataError
from mlagent_jax.rl.rollout import DroppedSample, OnSampled, Rollout, Sample
from mlagent_jax.train.state import Params
from mlagent_jax.types import from_json, to_json

# (update, policy parameters, what to call when all is sampled) -> samples of the update
CollectRollout = Callable[[int, Params, OnSampled | None], Rollout]
_PREFIX = "rollout-"


class RolloutSource:
    """Gives the rollout of each update, and collects the next one in the background.

    Args:
      collect: samples a rollout; must depend on its arguments alone.
      directory: gets the rollouts in flight.
      is_ahead: whether to collect one update ahead.
    """

    def __init__(
        self, collect: CollectRollout, directory: Path, *, is_ahead: bool
    ) -> None:
        self._collect = collect
        self._directory = directory
        self._is_ahead = is_ahead
        self._pool = ThreadPoolExecutor(1, "rollout")
        self._next: tuple[int, Future[Rollout]] | None = None

    def take(
        self, update: int, params: Params, on_sampled: OnSampled | None = None
    ) -> Rollout:
        """Returns the rollout of `update`.

        Args:
          update: index of the update, from 0.
          params: policy as it is now; samples the rollout unless that was done ahead.
          on_sampled: see `collect_rollout`; not called if this was done ahead, by a
            policy that has been updated since.

        Raises:
          DataError: the run goes on from a checkpoint whose rollout in flight is
            missing or damaged.
        """
        if self._next is not None:
            number, future = self._next
            assert number == update
            self._next = None
            return future.result()
        if self._is_ahead and update > 0:
            return load_rollout(self._path(update))
        return self._collect(update, params, on_sampled)

    def begin(self, update: int, params: Params) -> None:
        """Starts collecting the rollout of `update`, if this is done ahead."""
        if self._is_ahead:
            # The update that runs meanwhile consumes the arrays it was given.
            params = jax.tree.map(jnp.copy, params)
            self._next = update, self._pool.submit(self._collect, update, params, None)

    def wait(self) -> None:
        """Waits for what `begin` started; raises what it raised."""
        if self._next is not None:
            self._next[1].result()

    def save(self, checkpoints: Collection[int]) -> None:
        """Writes the rollout in flight, before the checkpoint that needs it.

        Args:
          checkpoints: updates of all checkpoints; other rollouts are removed.
        """
        if self._next is None:
            return
        number, future = self._next
        save_rollout(self._path(number), future.result())
        for path in self._directory.glob(f"{_PREFIX}*.json"):
            if int(path.stem.removeprefix(_PREFIX)) not in {number, *checkpoints}:
                path.unlink()

    def close(self) -> None:
        """Waits for the background to be idle; its result is lost."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "RolloutSource":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _path(self, update: int) -> Path:
        return self._directory / f"{_PREFIX}{update}.json"


def save_rollout(path: Path, rollout: Rollout) -> None:
    """Writes a rollout so that a reader finds all of it or none."""
    pairs = enumerate(rollout.samples)
    dropped = {i: s for i, s in pairs if isinstance(s, DroppedSample)}
    value = {
        "update": rollout.update,
        "num_samples": len(rollout.samples),
        "rollout_s": rollout.rollout_s,
        "sample_s": rollout.sample_s,
        "kept": to_json(rollout.kept()),
        "dropped": to_json(dropped),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_rollout(path: Path) -> Rollout:
    """Returns what `save_rollout` wrote.

    Raises:
      DataError: the file is missing or damaged.
    """
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        samples: dict[int, Sample | DroppedSample] = {}
        for i, record in value["kept"].items():
            samples[int(i)] = from_json(Sample, record, f"{path}: sample {i}")
        for i, record in value["dropped"].items():
            samples[int(i)] = from_json(DroppedSample, record, f"{path}: sample {i}")
        return Rollout(
            update=value["update"],
            samples=tuple(samples.get(i) for i in range(value["num_samples"])),
            rollout_s=value["rollout_s"],
            sample_s=value["sample_s"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: the rollout that was in flight cannot be read ({error!r:.200}); "
            "remove the newest checkpoint to go on from the one before it"
        ) from error
