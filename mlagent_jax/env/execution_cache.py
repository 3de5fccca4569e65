"""Results of earlier script executions, on disk and shared by all workers.

The same files, data, limits and interpreter give the same result, so nobody runs
them twice: policies often write the same edit, and every trajectory starts with the
same script. Only outcomes that do not depend on how busy the machine was are kept.
Scores are not: grading is cheap, and a change of the grader must show at once.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import logging
import sys

from mlagent_jax.env.packs import PackFolder
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.errors import DataError
from mlagent_jax.types import ExecResult, Outcome, Task, from_json, to_json

_log = logging.getLogger(__name__)

# Time-outs and exhausted memory depend on the machine; they are measured each time.
_CACHED_OUTCOMES = frozenset({Outcome.INFO, Outcome.SCRIPT_ERROR})


@dataclasses.dataclass(frozen=True, kw_only=True)
class CachedExecution:
    """What one execution left behind.

    Attributes:
      result: how it ended.
      snapshot_after: workspace after it.
      submission: blob id of its submission.csv, None if it wrote none.
    """

    result: ExecResult
    snapshot_after: str
    submission: str | None


class ExecutionCache:
    """Maps everything an execution depends on to what it left behind."""

    def __init__(self, store: SnapshotStore) -> None:
        """Opens the cache of `store`, in the folder `executions` of its root."""
        self._store = store
        self._packs = PackFolder(store.root / "executions")

    def get(self, key: str) -> CachedExecution | None:
        """Returns the execution stored under `key`, None if there is none.

        A damaged entry, or one whose files are gone, counts as none.
        """
        data = self._packs.get(bytes.fromhex(key))
        if data is None:
            return None
        try:
            found = _decode_entry(data.decode(errors="replace"), key)
            self._store.get(found.snapshot_after)
            if found.submission is not None:
                self._store.get_blob(found.submission)
        except DataError as error:
            _log.warning("execution cache: ignoring a damaged entry: %s", error)
            return None
        result = dataclasses.replace(found.result, is_cached=True)
        return dataclasses.replace(found, result=result)

    def put(self, key: str, execution: CachedExecution) -> None:
        """Stores `execution` unless its outcome depends on the machine's load.

        Raises:
          EnvUnavailableError: the disk is full or not writable.
        """
        if execution.result.outcome in _CACHED_OUTCOMES:
            self._packs.put(bytes.fromhex(key), _encode_entry(execution).encode())


def execution_key(task: Task, snapshot: str, script: str, isolation: str) -> str:
    """Returns the cache key of running `script` in `snapshot` of `task`."""
    public = {k: v for k, v in task.file_hashes.items() if k.startswith("public/")}
    inputs = {
        "task": task.id,
        "version": task.version,
        "public": public,
        "limits": to_json(task.limits),
        "snapshot": snapshot,
        "script": script,
        "isolation": isolation,
        "interpreter": _interpreter_hash(),
    }
    return _hash(json.dumps(inputs, sort_keys=True))


@functools.cache
def _interpreter_hash() -> str:
    """Returns a hash of the Python version and of every installed package."""
    packages = sorted(
        f"{found.name}=={found.version}" for found in importlib.metadata.distributions()
    )
    return _hash("\n".join([sys.version, *packages]))


def _encode_entry(execution: CachedExecution) -> str:
    body = json.dumps(to_json(execution), sort_keys=True)
    return f"{_hash(body)}\n{body}\n"


def _decode_entry(text: str, where: str) -> CachedExecution:
    digest, _, body = text.partition("\n")
    body = body.removesuffix("\n")
    if digest != _hash(body):
        raise DataError(f"{where}: the content does not match its hash")
    return from_json(CachedExecution, json.loads(body), where)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
