"""From a grid to the stages that have to run: arms share what they have in common.

A stage is named by a hash of every setting that it or a stage before it reads, and
has a folder of its own. Two arms (of one seed) whose settings agree up to a stage thus
mean the same folder: it runs once. Later stages see the products of earlier ones
through symbolic links, each as the run directory that its program expects.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlagent_jax.config import Arm, Grid, RunConfig, load_config
from mlagent_jax.errors import ConfigError
from mlagent_jax.types import to_json

DONE_FILE = "done.json"


@dataclasses.dataclass(frozen=True)
class _StageKind:
    """What a stage reads of the config, and the folders that it leaves behind."""

    fields: tuple[str, ...]
    products: tuple[str, ...]


_ALWAYS = ("task_root", "held_in", "held_out")
_STAGES = {
    "prepare": _StageKind(_ALWAYS, ("tasks",)),
    "collect": _StageKind(("seed", "prompt", "env", "collect"), ("trajectories",)),
    "pretrain": _StageKind(
        ("init", "model", "mesh", "tokenizer", "pretrain"), ("tokenizer", "pretrain")
    ),
    "sft": _StageKind(("init", "model", "mesh", "sft"), ("sft",)),
    "ppo": _StageKind(("sample", "ppo", "eval"), ("ppo",)),
    "evaluate": _StageKind(("sample", "eval", "ppo.reward"), ("eval",)),
}


@dataclasses.dataclass(frozen=True)
class Node:
    """One stage to run; equal to every other of the same folder.

    Attributes:
      stage: name of the program, `launch.<stage>`.
      folder: its run directory.
      overrides: `--set` values of the arm that asked first.
      before: the stages whose products it reads, in order; the last is its parent.
    """

    stage: str
    folder: Path
    overrides: tuple[str, ...] = dataclasses.field(compare=False)
    before: "tuple[Node, ...]" = dataclasses.field(compare=False)

    @property
    def is_done(self) -> bool:
        """Whether it has run to its end."""
        return (self.folder / DONE_FILE).is_file()

    def link_products(self) -> None:
        """Makes the folder, with links to what earlier stages made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for node in self.before:
            for name in _STAGES[node.stage].products:
                link = self.folder / name
                if not link.is_symlink():
                    link.symlink_to(node.folder / name, target_is_directory=True)


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One arm with one seed.

    Attributes:
      arm: of the grid.
      seed: of the run.
      config: as its last stage sees it.
      nodes: its stages, in order.
    """

    arm: Arm
    seed: int
    config: RunConfig
    nodes: tuple[Node, ...]


def plan_grid(
    grid: Grid, workdir: Path, overrides: Sequence[str] = ()
) -> list[PlannedRun]:
    """Returns every run of the grid; equal stages are equal nodes.

    Args:
      grid: what to run.
      workdir: gets a folder a stage.
      overrides: `--set` values for all arms, applied before the arm's own.

    Raises:
      ConfigError: an arm's change is wrong; the message names the arm.
    """
    return [
        _plan_run(grid, arm, seed, workdir, overrides)
        for seed in grid.seeds
        for arm in grid.arms
    ]


def unique_nodes(runs: Sequence[PlannedRun]) -> list[Node]:
    """Returns every stage of `runs` once, parents before children."""
    found: dict[Path, Node] = {}
    for run in runs:
        for node in run.nodes:
            found.setdefault(node.folder, node)
    return list(found.values())


def _plan_run(
    grid: Grid, arm: Arm, seed: int, workdir: Path, overrides: Sequence[str]
) -> PlannedRun:
    changes = (
        *overrides,
        f"seed={seed}",
        *arm.changes,
        f"eval.policies=['{arm.policy}']",
    )
    try:
        config = load_config(grid.base, changes)
    except ConfigError as error:
        raise ConfigError(f"arm {arm.name!r}: {error}") from error
    nodes: list[Node] = []
    key = ""
    for stage, kind in _STAGES.items():
        if stage == "pretrain" and config.pretrain is None:
            continue
        if stage == "ppo" and arm.policy == "sft":
            continue
        settings = {name: to_json(_get(config, name)) for name in kind.fields}
        text = json.dumps([key, stage, settings], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        folder = workdir / "stages" / f"{stage}-{key}"
        nodes.append(Node(stage, folder, changes, tuple(nodes)))
    return PlannedRun(arm, seed, config, tuple(nodes))


def _get(config: RunConfig, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value
