"""One action in one state: parse, apply, execute, grade, record.

`Environment.step` decides nothing about trajectories: it knows no step count and no
clock. What the agent did wrong becomes feedback; what we did wrong is raised. The
feedback depends on the state, the action and what the script printed, and on nothing
that varies between machines or runs: no durations, no host paths, no addresses.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Protocol

from mlagent_jax.config import EnvConfig
from mlagent_jax.env.execution_cache import (
    CachedExecution,
    ExecutionCache,
    execution_key,
)
from mlagent_jax.env.executor import Execution
from mlagent_jax.env.feedback import (
    action_text,
    failure_text,
    score_text,
    submission_text,
    undo_text,
)
from mlagent_jax.env.grading import grade
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.workspace import (
    NO_DATA,
    DataView,
    apply_action,
    check_size,
    unified_diff,
)
from mlagent_jax.errors import (
    ActionError,
    DataError,
    EnvUnavailableError,
    SubmissionError,
    TaskError,
)
from mlagent_jax.text.actions import parse_reply, replace_surrogates
from mlagent_jax.types import (
    CORNER_CASES,
    Action,
    ActionKind,
    ExecResult,
    Outcome,
    State,
    StepRecord,
    StepStatus,
    Task,
)

_EDITS = frozenset({ActionKind.EDIT, ActionKind.LINES, ActionKind.WRITE})
_MAX_READ_BYTES = 1 << 20


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
class Start:
    """The first state of every trajectory of a task.

    Attributes:
      state: fresh workspace with the measured score of the starter script.
      submission: blob id of the starter's submission.
    """

    state: State
    submission: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Effect:
    """What an action led to; `None` snapshot or score means unchanged."""

    outcome: Outcome
    feedback: str
    reason: str = ""
    status: StepStatus = StepStatus.ONGOING
    snapshot: str | None = None
    score: float | None = None
    is_edit: bool = False
    execution: ExecResult | None = None
    submission: str | None = None


class Environment:
    """Executes actions for any of its tasks; keeps no state between steps."""

    def __init__(
        self,
        tasks: Mapping[str, Task],
        store: SnapshotStore,
        executor: ScriptRunner,
        cfg: EnvConfig,
        cache: ExecutionCache | None = None,
    ) -> None:
        """Makes an environment that owns `executor`.

        Args:
          tasks: task id -> task.
          store: where workspaces and submissions are kept.
          executor: runs scripts; closed by `close`.
          cfg: limits of replies; the rest is the executor's.
          cache: earlier executions; None executes everything.
        """
        self._tasks = tasks
        self._store = store
        self._executor = executor
        self._cfg = cfg
        self._cache = cache

    def reset(self, task_id: str) -> Start:
        """Returns the start of a trajectory; the starter script has been run.

        Raises:
          TaskError: there is no such task, or its starter yields no score.
          EnvUnavailableError: the machinery failed, or the starter met a limit that
            depends on the machine's load.
        """
        task = self._tasks.get(task_id)
        if task is None:
            raise TaskError(f"no task {task_id!r}; known: {sorted(self._tasks)}")
        files = {path: text.encode() for path, text in task.starter.items()}
        state = State(
            task_id=task.id,
            task_version=task.version,
            snapshot=self._store.put(files),
            score=task.baseline,
        )
        effect = self._execute(task, state, state.snapshot, task.entry_script)
        if effect.outcome in CORNER_CASES:
            raise EnvUnavailableError(f"task {task_id}: starter: {effect.feedback}")
        if effect.score is None:
            raise TaskError(
                f"task {task_id}: the starter script yields no score: {effect.feedback}"
            )
        state = dataclasses.replace(state, score=effect.score)
        return Start(state=state, submission=effect.submission)

    def step(self, state: State, reply: str) -> StepRecord:
        """Returns the record of carrying out `reply` in `state`.

        Never raises for the agent's fault.

        Args:
          state: where the action starts.
          reply: the policy's words, any string.

        Raises:
          EnvUnavailableError: the machinery failed; nothing is known of the action.
          DataError: the state belongs to another version of its task, or its files
            are lost.
        """
        start_s = time.perf_counter()
        task = self._task_of(state)
        action: Action | None = None
        try:
            action = parse_reply(reply, max_chars=self._cfg.max_reply_chars)
            effect = self._act(task, state, action)
        except ActionError as error:
            effect = _Effect(
                outcome=Outcome.INVALID_ACTION,
                feedback=action_text(error),
                reason=error.reason,
            )
        snapshot = state.snapshot if effect.snapshot is None else effect.snapshot
        execution = effect.execution
        used_s = 0.0 if execution is None or execution.is_cached else execution.wall_s
        return StepRecord(
            reply=replace_surrogates(reply[: self._cfg.max_reply_chars]),
            action=action,
            reason=effect.reason,
            outcome=effect.outcome,
            status=effect.status,
            feedback=effect.feedback,
            diff=self._diff(state.snapshot, snapshot),
            snapshot_before=state.snapshot,
            snapshot_after=snapshot,
            score_before=state.score,
            score_after=state.score if effect.score is None else effect.score,
            is_edit=effect.is_edit,
            execution=execution,
            submission=effect.submission,
            isolation=self._executor.isolation,
            env_s=max(0.0, time.perf_counter() - start_s - used_s),
        )

    def close(self) -> None:
        """Closes the executor."""
        self._executor.close()

    def _task_of(self, state: State) -> Task:
        task = self._tasks.get(state.task_id)
        if task is None or task.version != state.task_version:
            known = "unknown here" if task is None else f"version {task.version} here"
            raise DataError(
                f"a state of task {state.task_id} version {state.task_version} cannot "
                f"be continued: the task is {known}; collect the trajectories anew"
            )
        return task

    def _act(self, task: Task, state: State, action: Action) -> _Effect:
        if action.kind is ActionKind.SUBMIT:
            return _Effect(
                outcome=Outcome.INFO,
                feedback="Submitted.",
                status=StepStatus.SUBMITTED,
            )
        if action.kind is ActionKind.UNDO:
            return _undo(state)
        before = self._store.get(state.snapshot)
        is_look = action.kind in (ActionKind.READ, ActionKind.LIST)
        data = _data_view(task) if is_look else NO_DATA
        files, text = apply_action(before, action, data=data)
        if action.kind is ActionKind.RUN:
            assert action.path is not None
            return self._execute(task, state, state.snapshot, action.path)
        if action.kind not in _EDITS:
            return _Effect(outcome=Outcome.INFO, feedback=text)
        if task.entry_script not in files:
            raise ActionError(
                "not_found",
                f"{task.entry_script} is missing; every edit runs it. Write it first.",
            )
        effect = self._execute(task, state, self._store.put(files), task.entry_script)
        return dataclasses.replace(effect, is_edit=True)

    def _execute(self, task: Task, state: State, snapshot: str, script: str) -> _Effect:
        """Runs `script` in `snapshot` and grades what it submits.

        A script that fails leaves no files behind: the workspace is then the one it
        was started in, so a state never depends on the moment of a time-out.
        """
        run = self._run_cached(task, snapshot, script)
        failed = _Effect(
            outcome=run.result.outcome,
            feedback="",
            snapshot=snapshot,
            execution=run.result,
        )
        if run.result.outcome is not Outcome.INFO:
            feedback = failure_text(task, script, run.result)
            return dataclasses.replace(failed, feedback=feedback)
        try:
            score = self._grade(task, run.submission)
        except SubmissionError as error:
            return dataclasses.replace(
                failed,
                outcome=Outcome.INVALID_SUBMISSION,
                feedback=submission_text(error, run.result),
                reason=error.reason,
                snapshot=run.snapshot_after,
            )
        return dataclasses.replace(
            failed,
            outcome=Outcome.SCORED,
            feedback=score_text(task, state.score, score, run.result),
            snapshot=run.snapshot_after,
            score=score,
            submission=run.submission,
        )

    def _run_cached(self, task: Task, snapshot: str, script: str) -> CachedExecution:
        key = execution_key(task, snapshot, script, self._executor.isolation)
        if self._cache is not None and (found := self._cache.get(key)) is not None:
            return found
        execution = self._executor.run(task.id, self._store.get(snapshot), script)
        result, files = execution.result, execution.files
        try:
            check_size(files)
        except ActionError:
            result = dataclasses.replace(result, outcome=Outcome.RESOURCE_LIMIT)
        has_files = result.outcome is Outcome.INFO
        submission = execution.submission if has_files else None
        run = CachedExecution(
            result=result,
            snapshot_after=self._store.put(files) if has_files else snapshot,
            submission=None if submission is None else self._store.put_blob(submission),
        )
        if self._cache is not None:
            self._cache.put(key, run)
        return run

    def _grade(self, task: Task, submission: str | None) -> float:
        """Returns the selection score of a stored submission.

        Raises:
          SubmissionError: there is none, or it cannot be scored.
        """
        if submission is None:
            raise SubmissionError("missing_file", "The script wrote no submission.csv.")
        return grade(task, self._store.get_blob(submission), "selection")

    def _diff(self, before: str, after: str) -> str:
        if before == after:
            return ""
        return unified_diff(self._store.get(before), self._store.get(after))


def advance(state: State, step: StepRecord) -> State:
    """Returns the state after `step`: its files, its score, its history.

    Every executed edit can be undone, also one whose script failed; an undo takes
    back one edit.
    """
    previous = state.previous_snapshots
    if step.is_edit:
        previous = (*previous, (step.snapshot_before, step.score_before))
    elif _is_undone(step):
        previous = previous[:-1]
    return dataclasses.replace(
        state,
        snapshot=step.snapshot_after,
        score=step.score_after,
        steps=(*state.steps, step),
        previous_snapshots=previous,
    )


def _is_undone(step: StepRecord) -> bool:
    is_undo = step.action is not None and step.action.kind is ActionKind.UNDO
    return is_undo and step.outcome is not Outcome.INVALID_ACTION


def _undo(state: State) -> _Effect:
    if not state.previous_snapshots:
        raise ActionError("nothing_to_undo", "There is no change to undo.")
    snapshot, score = state.previous_snapshots[-1]
    return _Effect(
        outcome=Outcome.INFO,
        feedback=undo_text(score),
        snapshot=snapshot,
        score=score,
    )


def _data_view(task: Task) -> DataView:
    names = [
        key.removeprefix("public/")
        for key in task.file_hashes
        if key.startswith("public/")
    ]

    def read(name: str) -> bytes:
        with (task.public_dir / name).open("rb") as file:
            head = file.read(_MAX_READ_BYTES)
        # Whole lines only, so that no character is cut in two.
        is_cut = len(head) == _MAX_READ_BYTES
        return head[: head.rfind(b"\n") + 1] if is_cut else head

    return DataView({n: (task.public_dir / n).stat().st_size for n in names}, read)
