"""Undo: of the whole workspace (profile `direct`), or of one file (profile `mlab`).

Both follow from the history of a state. MLAgentBench keys its backups by the file
that an edit started from, so an edit saved under another name cannot be undone; here
the file that was really written counts.
"""

from typing import NamedTuple

from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.errors import ActionError
from mlagent_jax.types import ActionKind, Outcome, State, StepRecord

_WRITES = frozenset(
    {
        ActionKind.EDIT,
        ActionKind.LINES,
        ActionKind.WRITE,
        ActionKind.ASK_EDIT,
        ActionKind.COPY,
    }
)


class Undone(NamedTuple):
    """Where an undo leads.

    Attributes:
      snapshot: the workspace then.
      score: its selection score, None if it was never scored as it is then.
      content: the undone file as it is then, None if it is gone; b"" where the whole
        workspace was restored.
    """

    snapshot: str
    score: float | None
    content: bytes | None = b""


def undo_last(state: State) -> Undone:
    """Returns the workspace before the last executed edit.

    Raises:
      ActionError: `nothing_to_undo`.
    """
    if not state.previous_snapshots:
        raise ActionError("nothing_to_undo", "There is no change to undo.")
    snapshot, score = state.previous_snapshots[-1]
    return Undone(snapshot, score)


def undo_file(state: State, path: str, store: SnapshotStore) -> Undone:
    """Returns the workspace with `path` as it was before the newest edit of it.

    If nothing else changed since that edit, it is the workspace from before, with its
    score; else the file alone goes back, and nobody knows the score of the mixture.

    Raises:
      ActionError: `nothing_to_undo`.
    """
    edits: list[StepRecord] = []
    for step in state.steps:
        if step.action is None or step.outcome is Outcome.INVALID_ACTION:
            continue
        if step.action.kind in _WRITES and written_file(step) == path:
            edits.append(step)
        elif step.action.kind is ActionKind.UNDO and step.action.path == path:
            edits.pop()
    if not edits:
        raise ActionError(
            "nothing_to_undo", f"There is no edit of {path:.200} to undo."
        )
    edit = edits[-1]
    content = store.get(edit.snapshot_before).get(path)
    if state.snapshot == edit.snapshot_after:
        return Undone(edit.snapshot_before, edit.score_before, content)
    files = store.get(state.snapshot)
    files.pop(path, None)
    if content is not None:
        files[path] = content
    return Undone(store.put(files), None, content)


def written_file(step: StepRecord) -> str | None:
    """Returns the file that a step's action wrote, None if it wrote none."""
    action = step.action
    if action is None or action.kind not in _WRITES:
        return None
    return action.path if action.target is None else action.target
