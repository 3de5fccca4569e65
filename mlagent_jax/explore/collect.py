"""Expert trajectories with diverse ideas: the data of exploration-enriched SFT (A.3).

For each held-in task: a pool of ideas, the most diverse of them, and trajectories
whose first prompt holds one to three of those at random. What a trajectory contains
depends on the run's seed and the trajectory's id alone, so an interrupted collection
continues with what is missing; only the order of lines depends on timing.
"""

import dataclasses
import hashlib
import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from mlagent_jax.config import KeepConfig, RunConfig
from mlagent_jax.data.task_hashes import record_task_hashes
from mlagent_jax.data.trajectories import TrajectoryFile, TrajectoryWriter
from mlagent_jax.env.runner import (
    TrajectorySpec,
    check_complete,
    run_trajectories,
    until_stopped,
)
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.step_loop import Pool
from mlagent_jax.errors import DataError, EnvUnavailableError
from mlagent_jax.explore.diversity import Selection, select_diverse
from mlagent_jax.explore.embeddings import Embed, embed_words
from mlagent_jax.explore.ideas import generate_ideas, load_moves
from mlagent_jax.explore.keep import Filter
from mlagent_jax.policy.base import Policy
from mlagent_jax.types import Task, to_json

EXPERT_FILE: Final = "expert.jsonl"
FRESH_FILE: Final = "fresh.jsonl"
REJECTED_FILE: Final = "rejected.jsonl"
IDEAS_FILE: Final = "ideas.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdeaPool:
    """The ideas of one task.

    Attributes:
      texts: the whole pool.
      selection: which of them trajectories draw from, with the diversity numbers.
    """

    texts: tuple[str, ...]
    selection: Selection

    @property
    def selected(self) -> tuple[str, ...]:
        """The ideas that trajectories draw from."""
        return tuple(self.texts[i] for i in self.selection.indices)


def collect(
    config: RunConfig,
    folder: Path,
    *,
    policy: Policy,
    pool: Pool,
    tasks: Mapping[str, Task],
    store: SnapshotStore,
    on_done: Callable[[], object],
    stop_reason: Callable[[], str] = lambda: "",
    ideas: Mapping[str, IdeaPool] | None = None,
) -> None:
    """Runs the trajectories that `folder` lacks and appends them to its files.

    Args:
      config: its `collect` section gives the numbers.
      folder: gets expert.jsonl (for training), rejected.jsonl (what `collect.keep`
        leaves out of it), fresh.jsonl (never trained on) and ideas.json.
      policy: the expert.
      pool: executes actions.
      tasks: task id -> task; all held-in tasks of `config`.
      store: snapshots.
      on_done: called once for every trajectory, those already there included.
      stop_reason: asked before each trajectory begins; a text ends the collection
        once those under way are finished.
      ideas: pools of the tasks; None composes them offline.

    Raises:
      DataError: the folder's files are damaged, or were collected with other ideas or
        on other contents of a task.
      TaskError: a task's moves.toml is missing, wrong or too small.
      PolicyError: `stop_reason` gave one; what was finished is recorded.
      EnvUnavailableError: some trajectories could not be recorded; the others are.
    """
    if ideas is None:
        ideas = make_idea_pools(config)
    _write_ideas(folder / IDEAS_FILE, ideas)
    record_task_hashes(folder, tasks)
    plan = plan_trajectories(config, ideas)
    with ExitStack() as stack:
        files = [EXPERT_FILE, FRESH_FILE]
        rejects = config.collect.keep != KeepConfig()
        if rejects or (folder / REJECTED_FILE).exists():
            files.append(REJECTED_FILE)
        writers = {
            name: stack.enter_context(TrajectoryWriter(folder / name)) for name in files
        }
        done = set[str]().union(*(writer.ids for writer in writers.values()))
        todo = {spec.id: (spec, name) for spec, name in plan if spec.id not in done}
        keep = Filter(config.collect.keep)
        if config.collect.keep.unique:
            for trajectory in TrajectoryFile(folder / EXPERT_FILE):
                keep.remember(trajectory)
        for _ in range(len(plan) - len(todo)):
            on_done()
        for trajectory in run_trajectories(
            until_stopped([spec for spec, _ in todo.values()], stop_reason),
            policy=policy,
            pool=pool,
            tasks=tasks,
            store=store,
            prompt=config.prompt,
            env=config.env,
            num_in_flight=config.collect.num_in_flight,
        ):
            _, name = todo.pop(trajectory.id)
            task = tasks[trajectory.task_id]
            if name == EXPERT_FILE and keep.reject_reason(trajectory, task):
                name = REJECTED_FILE
            writers[name].append(trajectory)
            on_done()
    check_complete("collect", len(plan) - len(todo), len(plan), stop_reason())
    if todo:
        raise EnvUnavailableError(
            f"{len(todo)} of {len(plan)} trajectories could not be recorded, see the "
            "warnings above; the same command tries them again"
        )


def make_idea_pools(
    config: RunConfig,
    write: Callable[[str, int], Sequence[str]] | None = None,
    embed: Embed = embed_words,
) -> dict[str, IdeaPool]:
    """Returns the ideas of every held-in task.

    Args:
      config: its `collect` section gives sizes and the method of selection.
      write: (task id, seed) -> ideas; None composes them from the task's moves.
      embed: texts to vectors, for the selection.

    Raises:
      TaskError: a task's moves.toml is missing, wrong or too small.
    """
    cfg = config.collect
    moves = {} if write else load_moves(config.task_root, config.held_in)
    pools: dict[str, IdeaPool] = {}
    for task_id in config.held_in:
        seed = _derive_seed(config.seed, f"ideas/{task_id}")
        if write is None:
            ideas = generate_ideas(moves[task_id], cfg.ideas_per_task, seed)
            texts = tuple(idea.text for idea in ideas)
        else:
            texts = tuple(write(task_id, seed))
        selection = select_diverse(
            texts,
            cfg.selected_ideas,
            seed,
            method=cfg.ideas.selection,
            embed=embed,
        )
        pools[task_id] = IdeaPool(texts=texts, selection=selection)
    return pools


def plan_trajectories(
    config: RunConfig, ideas: Mapping[str, IdeaPool]
) -> list[tuple[TrajectorySpec, str]]:
    """Returns every trajectory of the run with the file it belongs in.

    Tasks take turns, so that a part of the collection is balanced as well.
    """
    cfg = config.collect
    parts = (
        ("expert", EXPERT_FILE, cfg.trajectories_per_task),
        ("fresh", FRESH_FILE, cfg.fresh_per_task),
    )
    return [
        (_make_spec(f"{task_id}/{part}/{number:04d}", task_id, config, pool), name)
        for part, name, count in parts
        for number in range(count)
        for task_id, pool in ideas.items()
    ]


def _make_spec(
    trajectory_id: str, task_id: str, config: RunConfig, pool: IdeaPool
) -> TrajectorySpec:
    seed = _derive_seed(config.seed, trajectory_id)
    rng = random.Random(seed)
    max_ideas = config.collect.max_ideas_in_prompt
    num_ideas = rng.randint(1, max_ideas) if max_ideas else 0
    return TrajectorySpec(
        id=trajectory_id,
        task_id=task_id,
        seed=seed,
        ideas=tuple(rng.sample(pool.selected, num_ideas)),
    )


def _derive_seed(seed: int, name: str) -> int:
    """Returns 31 bits that depend on nothing but the run's seed and a name."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def _write_ideas(path: Path, ideas: Mapping[str, IdeaPool]) -> None:
    """Records the pools, or checks that they are those recorded before.

    Raises:
      DataError: the trajectories there were collected with other ideas.
    """
    text = json.dumps(_ideas_record(ideas), indent=1) + "\n"
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise DataError(
                f"{path}: holds other ideas than this configuration makes (moves.toml "
                "or the sizes of the pool were changed); collect into another workdir"
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _ideas_record(ideas: Mapping[str, IdeaPool]) -> dict[str, Any]:
    return {
        task_id: {
            "selected": list(pool.selected),
            "diversity": to_json(pool.selection),
            "pool": list(pool.texts),
        }
        for task_id, pool in ideas.items()
    }
