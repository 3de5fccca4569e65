"""One action in one state: parse, apply, execute, grade, record.

`Environment.step` decides nothing about trajectories: it knows no step count and no
clock. What the agent did wrong becomes feedback; what we did wrong is raised. The
feedback depends on the state, the action and what the script printed, and on nothing
that varies between machines or runs: no durations, no host paths, no addresses.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import NamedTuple

from mlagent_jax.config import EnvConfig
from mlagent_jax.env.cached_runner import CacheCheck, CachedRunner, ScriptRunner
from mlagent_jax.env.diffs import unified_diff
from mlagent_jax.env.execution_cache import ExecutionCache
from mlagent_jax.env.feedback import (
    action_text,
    failure_text,
    restored_text,
    saved_text,
    score_text,
    submission_text,
    undo_text,
)
from mlagent_jax.env.grading import grade
from mlagent_jax.env.integrity import submission_events
from mlagent_jax.env.looks import NO_DATA, task_view
from mlagent_jax.env.reward import reward_parts
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.undo import undo_file, undo_last
from mlagent_jax.env.workspace import apply_action, check_path
from mlagent_jax.errors import (
    ActionError,
    ConfigError,
    DataError,
    EnvUnavailableError,
    SubmissionError,
    TaskError,
)
from mlagent_jax.text.actions import replace_surrogates
from mlagent_jax.text.editor import read_edited_file
from mlagent_jax.text.profiles import get_profile
from mlagent_jax.types import (
    CORNER_CASES,
    Action,
    ActionKind,
    EditorCall,
    ExecResult,
    Outcome,
    State,
    StepRecord,
    StepStatus,
    Task,
)

__all__ = ["Environment", "ScriptRunner", "Start"]

_LOOKS_AT_DATA = frozenset(
    {
        ActionKind.READ,
        ActionKind.LIST,
        ActionKind.INSPECT,
        ActionKind.UNDERSTAND,
        ActionKind.COPY,
    }
)
_ALWAYS_RUN = frozenset({ActionKind.EDIT, ActionKind.LINES, ActionKind.WRITE})
_MAX_GRADED = 1_000


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
    cache_check: CacheCheck = ""
    events: tuple[str, ...] = ()


class _Graded(NamedTuple):
    """What grading a submission gave: its selection score and what is suspicious."""

    score: float
    events: tuple[str, ...]


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
        self._graded: dict[tuple[str, str], _Graded] = {}
        self._profile = get_profile(cfg.profile)
        self._runner = CachedRunner(
            store, executor, cache, verify_frac=cfg.verify_cache_frac
        )

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

    def step(
        self, state: State, reply: str, edit: EditorCall | None = None
    ) -> StepRecord:
        """Returns the record of carrying out `reply` in `state`.

        Never raises for the agent's fault.

        Args:
          state: where the action starts.
          reply: the policy's words, any string.
          edit: the editor's answer if the reply asks for an edit in words (see
            `env.editor`).

        Raises:
          ConfigError: the reply asks for an edit in words and there is no answer.
          EnvUnavailableError: the machinery failed; nothing is known of the action.
          DataError: the state belongs to another version of its task, or its files
            are lost.
        """
        start_s = time.perf_counter()
        task = self._task_of(state)
        action: Action | None = None
        try:
            action = self._profile.parse_reply(
                reply, max_chars=self._cfg.max_reply_chars
            )
            effect = self._act(task, state, action, edit)
        except ActionError as error:
            effect = _Effect(
                outcome=Outcome.INVALID_ACTION,
                feedback=action_text(error),
                reason=error.reason,
            )
        snapshot = state.snapshot if effect.snapshot is None else effect.snapshot
        execution = effect.execution
        used_s = 0.0 if execution is None or execution.is_cached else execution.wall_s
        is_asked = action is not None and action.kind is ActionKind.ASK_EDIT
        step = StepRecord(
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
            profile=self._cfg.profile,
            task_version=task.version,
            edit=edit if is_asked else None,
            integrity_events=(
                *(() if execution is None else execution.integrity_events),
                *effect.events,
            ),
            cache_check=effect.cache_check,
        )
        return dataclasses.replace(step, reward_parts=reward_parts(state, step, task))

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

    def _act(
        self, task: Task, state: State, action: Action, edit: EditorCall | None
    ) -> _Effect:
        if action.kind is ActionKind.SUBMIT:
            return _Effect(
                outcome=Outcome.INFO,
                feedback="Submitted.",
                status=StepStatus.SUBMITTED,
            )
        if action.kind is ActionKind.UNDO:
            return self._undo(state, action)
        if action.kind is ActionKind.ASK_EDIT:
            return self._save_edit(task, state, action, edit)
        before = self._store.get(state.snapshot)
        files, text = apply_action(
            before,
            action,
            data=task_view(task) if action.kind in _LOOKS_AT_DATA else NO_DATA,
            list_hint=self._profile.list_hint,
        )
        if action.kind is ActionKind.RUN:
            assert action.path is not None
            return self._execute(task, state, state.snapshot, action.path)
        is_entry_copied = (
            action.kind is ActionKind.COPY and action.target == task.entry_script
        )
        if action.kind in _ALWAYS_RUN or is_entry_copied:
            return self._run_edited(task, state, files)
        if action.kind is ActionKind.COPY:
            text = f"{action.path} is copied to {action.target}."
            return _Effect(
                outcome=Outcome.INFO, feedback=text, snapshot=self._store.put(files)
            )
        return _Effect(outcome=Outcome.INFO, feedback=text)

    def _run_edited(
        self, task: Task, state: State, files: Mapping[str, bytes]
    ) -> _Effect:
        """Runs the entry script of an edited workspace, as every edit does.

        Raises:
          ActionError: `not_found`: there is no entry script.
        """
        if task.entry_script not in files:
            raise ActionError(
                "not_found",
                f"{task.entry_script} is missing; every edit runs it. Write it first.",
            )
        effect = self._execute(task, state, self._store.put(files), task.entry_script)
        return dataclasses.replace(effect, is_edit=True)

    def _save_edit(
        self, task: Task, state: State, action: Action, edit: EditorCall | None
    ) -> _Effect:
        """Writes what the editor answered; a change of the entry script is run.

        Raises:
          ConfigError: nobody asked the editor.
        """
        assert action.path is not None
        assert action.target is not None
        check_path(action.path, for_write=False)
        check_path(action.target, for_write=True)
        if edit is None:
            raise ConfigError(
                f"env.profile = {self._cfg.profile!r}: the reply asks an editor for a "
                "change, but there is none; put env.editor.EditingPool around the pool"
            )
        before = self._store.get(state.snapshot)
        write = Action(
            kind=ActionKind.WRITE,
            path=action.target,
            content=read_edited_file(edit.reply),
        )
        files = apply_action(before, write).files
        text = saved_text(action.target, unified_diff(before, files))
        if action.target != task.entry_script:
            return _Effect(
                outcome=Outcome.INFO, feedback=text, snapshot=self._store.put(files)
            )
        effect = self._run_edited(task, state, files)
        return dataclasses.replace(effect, feedback=f"{text}{effect.feedback}")

    def _undo(self, state: State, action: Action) -> _Effect:
        if action.path is None:
            undone = undo_last(state)
            assert undone.score is not None
            feedback = undo_text(undone.score)
        else:
            check_path(action.path, for_write=False)
            undone = undo_file(state, action.path, self._store)
            feedback = restored_text(action.path, undone.content)
        return _Effect(
            outcome=Outcome.INFO,
            feedback=feedback,
            snapshot=undone.snapshot,
            score=undone.score,
        )

    def _execute(self, task: Task, state: State, snapshot: str, script: str) -> _Effect:
        """Runs `script` in `snapshot` and grades what it submits.

        A script that fails leaves no files behind: the workspace is then the one it
        was started in, so a state never depends on the moment of a time-out.
        """
        ran = self._runner.run(task, snapshot, script)
        run = ran.execution
        failed = _Effect(
            outcome=run.result.outcome,
            feedback="",
            snapshot=snapshot,
            execution=run.result,
            cache_check=ran.cache_check,
        )
        if run.result.outcome is not Outcome.INFO:
            feedback = failure_text(task, script, run.result)
            return dataclasses.replace(failed, feedback=feedback)
        try:
            graded = self._grade(task, run.submission)
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
            feedback=score_text(task, state.score, graded.score, run.result),
            snapshot=run.snapshot_after,
            score=graded.score,
            submission=run.submission,
            events=graded.events,
        )

    def _grade(self, task: Task, submission: str | None) -> _Graded:
        """Returns the selection score of a stored submission.

        The same file is graded once in the life of this process: policies often make
        the same edit, and an unchanged grader gives the same score.

        Raises:
          SubmissionError: there is none, or it cannot be scored.
        """
        if submission is None:
            raise SubmissionError("missing_file", "The script wrote no submission.csv.")
        key = (task.id, submission)
        if key not in self._graded:
            data = self._store.get_blob(submission)
            score = grade(task, data, "selection")
            if len(self._graded) >= _MAX_GRADED:
                self._graded.clear()
            self._graded[key] = _Graded(score, submission_events(task, data))
        return self._graded[key]

    def _diff(self, before: str, after: str) -> str:
        if before == after:
            return ""
        return unified_diff(self._store.get(before), self._store.get(after))
