"""Runs a script in a stored workspace, or answers from the execution cache.

A share of the cache's answers can be checked: the script is run all the same and the
results are compared. What must be equal is all that decides a step: how the script
ended, what it printed, the files and the submission that it left.
"""

import dataclasses
import logging
import random
from collections.abc import Mapping
from typing import Literal, Protocol

from mlagent_jax.env.execution_cache import (
    CachedExecution,
    ExecutionCache,
    execution_key,
)
from mlagent_jax.env.executor import Execution
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.workspace import check_size
from mlagent_jax.errors import ActionError
from mlagent_jax.types import CORNER_CASES, ExecResult, Outcome, Task

_log = logging.getLogger(__name__)

CacheCheck = Literal["", "same", "different"]


class ScriptRunner(Protocol):
    """What the environment needs of `env.executor.Executor`."""

    @property
    def isolation(self) -> str:
        """How scripts are confined, as on `StepRecord.isolation`."""
        ...

    def run(self, task_id: str, files: Mapping[str, bytes], script: str) -> Execution:
        """Runs `script` in a fresh workspace that holds `files`."""
        ...

    def close(self) -> None:
        """Ends every process."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ran:
    """What became of a script.

    Attributes:
      execution: what it left behind.
      cache_check: as on `StepRecord.cache_check`.
    """

    execution: CachedExecution
    cache_check: CacheCheck = ""


class CachedRunner:
    """Executes scripts unless the same execution is in the cache."""

    def __init__(
        self,
        store: SnapshotStore,
        executor: ScriptRunner,
        cache: ExecutionCache | None,
        *,
        verify_frac: float,
    ) -> None:
        """Makes a runner around an executor, which it does not close.

        Args:
          store: holds workspaces and submissions.
          executor: runs scripts.
          cache: earlier executions; None executes everything.
          verify_frac: share of the cache's answers that are checked, in [0, 1].
        """
        self._store = store
        self._executor = executor
        self._cache = cache
        self._verify_frac = verify_frac
        self._rng = random.Random(0)

    def run(self, task: Task, snapshot: str, script: str) -> Ran:
        """Returns what running `script` in the workspace `snapshot` leaves behind.

        Raises:
          EnvUnavailableError: the machinery failed.
        """
        if self._cache is None or not task.is_deterministic:
            return Ran(execution=self._execute(task, snapshot, script))
        key = execution_key(task, snapshot, script, self._executor.isolation)
        found = self._cache.get(key)
        if found is None:
            execution = self._execute(task, snapshot, script)
            self._cache.put(key, execution)
            return Ran(execution=execution)
        if self._rng.random() >= self._verify_frac:
            return Ran(execution=found)
        again = self._execute(task, snapshot, script)
        if again.result.outcome in CORNER_CASES:
            return Ran(execution=found)  # a busy machine; nothing can be said
        different = differences(found, again)
        if different:
            _log.warning(
                "execution cache: task %s, workspace %s: a repeated run of %s has "
                "another %s; declare the task non-deterministic "
                "(deterministic = false in task.toml) or seed the script",
                task.id,
                snapshot,
                script,
                ", ".join(different),
            )
        return Ran(execution=found, cache_check="different" if different else "same")

    def _execute(self, task: Task, snapshot: str, script: str) -> CachedExecution:
        execution = self._executor.run(task.id, self._store.get(snapshot), script)
        result, files = execution.result, execution.files
        try:
            check_size(files)
        except ActionError:
            result = dataclasses.replace(result, outcome=Outcome.RESOURCE_LIMIT)
        has_files = result.outcome is Outcome.INFO
        submission = execution.submission if has_files else None
        return CachedExecution(
            result=result,
            snapshot_after=self._store.put(files) if has_files else snapshot,
            submission=None if submission is None else self._store.put_blob(submission),
        )


def differences(first: CachedExecution, second: CachedExecution) -> list[str]:
    """Returns the names of what two executions of the same script differ in.

    Times, memory and the standard error of a run that succeeded (warnings, progress)
    may differ between runs and decide nothing.
    """
    names = [
        name
        for name in ("snapshot_after", "submission")
        if getattr(first, name) != getattr(second, name)
    ]
    compared = ["outcome", "exit_code", "signal", "stdout", "integrity_events"]
    if first.result.outcome is not Outcome.INFO:
        compared.append("stderr")
    return names + [n for n in compared if _value(first, n) != _value(second, n)]


def _value(execution: CachedExecution, name: str) -> object:
    result: ExecResult = execution.result
    return getattr(result, name)
