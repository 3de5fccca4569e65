"""Data of the trajectory browser: an index in the page, details in chunks beside it.

A page opened from a disk may not fetch files, but it may load scripts. So every
chunk is a script of one call, `receive(number, "<base64 of gzipped JSON>")`, that the
page adds when a trajectory of that chunk is opened. Trajectories stream through:
the writer holds one chunk and one short index row for each.
"""

import base64
import dataclasses
import functools
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.types import Outcome, StepRecord, Task, Trajectory

COLUMNS: Final = (
    "id",
    "policy",
    "task",
    "split",
    "source",
    "steps",
    "status",
    "gain",
    "reward",
    "outcomes",
    "ideas",
    "chunk",
    "position",
)
_CHUNK_BYTES: Final = 1_500_000
_SCRIPTS_IN_MEMORY: Final = 4_096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A trajectory as the browser shows it.

    Attributes:
      trajectory: as recorded.
      task: its task.
      source: "evaluation" or "collected".
      rewards: one a step.
      scores: hidden test scores by name; empty where none were made.
      gain: relative gain in percent, None without test scores.
    """

    trajectory: Trajectory
    task: Task
    source: str
    rewards: Sequence[float]
    scores: Mapping[str, float]
    gain: float | None


class ChunkWriter:
    """Writes <folder>/<number>.js and collects the rows of the index.

    Args:
      folder: gets the chunks; older ones there are removed.
      store: snapshots, for the scripts that trajectories went through.
    """

    def __init__(self, folder: Path, store: SnapshotStore) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.js"):
            old.unlink()
        self._folder = folder
        self._read_script = functools.lru_cache(_SCRIPTS_IN_MEMORY)(
            lambda snapshot, path: _read_script(store, snapshot, path)
        )
        self._chunk: list[str] = []
        self._chunk_bytes = 0
        self._num_chunks = 0
        self._rows: list[list[Any]] = []

    def add(self, entry: Entry) -> None:
        """Adds one trajectory."""
        text = json.dumps(make_detail(entry, self._read_script))
        if self._chunk and self._chunk_bytes + len(text) > _CHUNK_BYTES:
            self._flush()
        trajectory, rewards = entry.trajectory, entry.rewards
        self._rows.append(
            [
                trajectory.id,
                trajectory.policy,
                trajectory.task_id,
                entry.task.split,
                entry.source,
                len(trajectory.steps),
                trajectory.status.value,
                None if entry.gain is None else round(entry.gain, 3),
                round(sum(rewards) / max(len(rewards), 1), 4),
                sorted({_OUTCOME_NUMBERS[s.outcome] for s in trajectory.steps}),
                " ".join(trajectory.ideas)[:200],
                self._num_chunks,
                len(self._chunk),
            ]
        )
        self._chunk.append(text)
        self._chunk_bytes += len(text)

    def finish(self, extra: Mapping[str, Any]) -> str:
        """Writes what is left; returns the packed index for the page.

        Args:
          extra: further values that the page's script needs.
        """
        if self._chunk:
            self._flush()
        index = {
            "columns": COLUMNS,
            "outcomes": [outcome.value for outcome in Outcome],
            "rows": self._rows,
            **extra,
        }
        return pack(json.dumps(index))

    def _flush(self) -> None:
        packed = pack(f"[{','.join(self._chunk)}]")
        path = self._folder / f"{self._num_chunks}.js"
        path.write_text(f'receive({self._num_chunks},"{packed}")\n')
        self._num_chunks += 1
        self._chunk, self._chunk_bytes = [], 0


_OUTCOME_NUMBERS: Final = {outcome: i for i, outcome in enumerate(Outcome)}


def make_detail(entry: Entry, read_script: Callable[[str, str], str]) -> dict[str, Any]:
    """Returns everything that the browser shows of one trajectory.

    Args:
      entry: the trajectory.
      read_script: (snapshot, path) -> text of a file.
    """
    trajectory, task = entry.trajectory, entry.task
    snapshots = dict.fromkeys(
        [trajectory.start_snapshot, *(s.snapshot_before for s in trajectory.steps)]
    )
    return {
        "id": trajectory.id,
        "task": task.id,
        "policy": trajectory.policy,
        "seed": trajectory.seed,
        "ideas": trajectory.ideas,
        "status": trajectory.status.value,
        "start": trajectory.start_score,
        "scores": dict(entry.scores),
        "gain": entry.gain,
        "usage": {k: round(v, 3) for k, v in trajectory.usage.items()},
        "scripts": {s: read_script(s, task.entry_script) for s in snapshots},
        "steps": [
            _step_detail(step, reward)
            for step, reward in zip(trajectory.steps, entry.rewards, strict=True)
        ],
    }


def pack(text: str) -> str:
    """Returns base64 of the gzipped text; the same bytes every time."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _step_detail(step: StepRecord, reward: float) -> dict[str, Any]:
    execution = step.execution
    return {
        "label": _label(step),
        "reply": step.reply,
        "outcome": step.outcome.value,
        "feedback": step.feedback,
        "diff": step.diff,
        "state": step.snapshot_before,
        "before": step.score_before,
        "after": step.score_after,
        "reward": reward,
        "seconds": None if execution is None else round(execution.wall_s, 3),
        "cached": execution is not None and execution.is_cached,
        "integrity": [] if execution is None else execution.integrity_events,
    }


def _label(step: StepRecord) -> str:
    if step.action is None:
        return step.reason or "no action"
    target = f" {step.action.path}" if step.action.path else ""
    return f"{step.action.kind.value}{target}"


def _read_script(store: SnapshotStore, snapshot: str, path: str) -> str:
    """Returns the text of a file of a snapshot, "" if a script has removed it."""
    blob_id = store.manifest(snapshot).get(path)
    if blob_id is None:
        return ""
    return store.get_blob(blob_id).decode(errors="replace")
