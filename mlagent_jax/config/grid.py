"""A grid of runs to compare: arms, seeds and comparisons, as data.

A grid is a file `configs/<grid>.py` with `get_grid() -> Grid`; `launch.ablate` runs
it. An arm is one run config with a few fields changed, so a grid of your own needs a
few lines:

    def get_grid() -> Grid:
        return Grid(
            name="my_grid",
            base="configs/quickstart.py",
            seeds=(0, 1),
            arms=(Arm("low", ("ppo.kl_coef=0.0",)), Arm("high", ("ppo.kl_coef=1",))),
            comparisons=(Comparison("kl", "KL penalty", ("low", "high")),),
        )
"""

import dataclasses
import os
from typing import Literal

from mlagent_jax.config.checks import check
from mlagent_jax.config.load import load_module
from mlagent_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Arm:
    """One setting that is run with every seed.

    Attributes:
      name: as shown in tables.
      changes: `section.field=value` overrides of the base, as after `--set`.
      policy: which stage's policy is evaluated; "sft" trains no further.
    """

    name: str
    changes: tuple[str, ...] = ()
    policy: Literal["sft", "ppo"] = "ppo"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One table.

    Attributes:
      name: file stem.
      title: caption.
      arms: rows, the first is what the others are compared with.
      at: "end": the evaluation after training; "seconds" or "executions": the last
        evaluation on the side of training (`ppo.probe_every`) that every arm reached
        within what the cheapest of them spent in all.
      note: what a reader must know; may be empty.
    """

    name: str
    title: str
    arms: tuple[str, ...]
    at: Literal["end", "seconds", "executions"] = "end"
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Everything that `launch.ablate` runs.

    Attributes:
      name: of the grid; default working directory is runs/<name>.
      base: path of the run config that arms change.
      seeds: every arm runs with each.
      arms: unique names.
      comparisons: tables over arms.
      cores_per_run: CPU cores that one stage of a run is given.
    """

    name: str
    base: str
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]
    cores_per_run: int = 2

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        check(
            len(names) == len(set(names)) > 0,
            "grid.arms",
            names,
            "arms of unique names",
        )
        seeds = self.seeds
        is_ok = len(seeds) == len(set(seeds)) > 0
        check(is_ok, "grid.seeds", seeds, "at least one, none twice")
        check(self.cores_per_run >= 1, "cores_per_run", self.cores_per_run, ">= 1")
        tables = [c.name for c in self.comparisons]
        is_ok = len(tables) == len(set(tables))
        check(is_ok, "grid.comparisons", tables, "unique names")
        policy_of = {arm.name: arm.policy for arm in self.arms}
        for comparison in self.comparisons:
            field = f"comparison {comparison.name!r}"
            missing = [name for name in comparison.arms if name not in policy_of]
            check(not missing, field, missing, f"arms of the grid: {names}")
            untrained = [n for n in comparison.arms if policy_of[n] == "sft"]
            is_ok = comparison.at == "end" or not untrained
            check(is_ok, field, untrained, "arms that go on to ppo, to have a curve")

    @property
    def num_parallel(self) -> int:
        """Runs side by side on this machine."""
        return max((os.cpu_count() or 1) // self.cores_per_run, 1)


def load_grid(path: str) -> Grid:
    """Returns the grid that `path`'s `get_grid()` builds.

    Raises:
      ConfigError: no such file, no `get_grid`, or a wrong one.
    """
    module = load_module(path)
    if not hasattr(module, "get_grid"):
        raise ConfigError(f"--config={path}: the file defines no get_grid()")
    grid = module.get_grid()
    if not isinstance(grid, Grid):
        raise ConfigError(f"--config={path}: get_grid() returned no Grid")
    return grid
