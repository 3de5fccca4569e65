"""Records that cross a boundary on the host: task, action, step, trajectory.

Plain frozen dataclasses without behaviour beyond small derived values; nothing
here imports jax or touches the disk. `mlagent_jax.codec` gives every record the one
form in which it is stored (JSONL files of the run directory).
"""

import dataclasses
import enum
from pathlib import Path
from typing import Any, Literal, cast

from mlagent_jax.codec import from_json, to_json
from mlagent_jax.errors import DataError

__all__ = [
    "CORNER_CASES",
    "TRAJECTORY_FORMAT",
    "Action",
    "ActionKind",
    "Direction",
    "EditorCall",
    "ExecResult",
    "HumanScores",
    "Limits",
    "Message",
    "Outcome",
    "Part",
    "ProfileName",
    "Source",
    "Split",
    "State",
    "StepRecord",
    "StepStatus",
    "Task",
    "Trajectory",
    "from_json",
    "to_json",
]

Direction = Literal["max", "min"]
Split = Literal["held_in", "held_out"]
Part = Literal["selection", "test"]
# Where a task's data comes from: the offline pack, made up in the layout of an archive
# that everyone knows, or that archive itself.
Source = Literal["pack", "lookalike", "real"]
ProfileName = Literal["direct", "mlab"]

TRAJECTORY_FORMAT = 2
"""Version of the stored form of a `Trajectory`; raised whenever a field changes."""


class ActionKind(enum.StrEnum):
    """What one reply may ask for; which of them depends on the action profile."""

    EDIT = "edit"  # exact search/replace blocks
    LINES = "lines"  # replace an inclusive range of numbered lines
    WRITE = "write"  # write a whole file
    ASK_EDIT = "ask_edit"  # tell an editor in words what to change (mlab)
    COPY = "copy"  # copy a file (mlab)
    READ = "read"  # numbered listing of a file
    INSPECT = "inspect"  # a short range of lines as they are (mlab)
    UNDERSTAND = "understand"  # a whole file, cut to the observation limit (mlab)
    LIST = "list"  # files of the workspace
    RUN = "run"  # execute a script without editing
    UNDO = "undo"  # take back the last edit
    SUBMIT = "submit"  # end the trajectory


class Outcome(enum.StrEnum):
    """Typed feedback of one step; rewards depend on it, never on feedback text."""

    INVALID_ACTION = "invalid_action"  # not parsed or not applicable; nothing ran
    INFO = "info"  # valid, not an edit that ran (read, list, submit, ...)
    SCORED = "scored"  # a script ran and its submission has a selection score
    SCRIPT_ERROR = "script_error"  # non-zero exit status
    TIMEOUT = "timeout"  # the script's own wall-clock or CPU limit
    OUT_OF_MEMORY = "out_of_memory"
    RESOURCE_LIMIT = "resource_limit"  # output, file size, processes
    INVALID_SUBMISSION = "invalid_submission"  # ran, but nothing gradable came out


# Environment limits rather than the idea's fault: the paper's "corner cases" (A.6).
CORNER_CASES = frozenset(
    {Outcome.TIMEOUT, Outcome.OUT_OF_MEMORY, Outcome.RESOURCE_LIMIT}
)


class StepStatus(enum.StrEnum):
    """Whether a trajectory goes on after a step, and if not, why."""

    ONGOING = "ongoing"
    SUBMITTED = "submitted"
    TRUNCATED_STEPS = "truncated_steps"
    TRUNCATED_TIME = "truncated_time"
    TRUNCATED_TOKENS = "truncated_tokens"
    ENV_FAILED = "env_failed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one script execution may use.

    Attributes:
      wall_s: wall-clock seconds before the whole process group is killed.
      cpu_s: CPU seconds of the process.
      memory_bytes: address space and resident memory.
      output_bytes: stdout and stderr together; more ends the script.
      file_bytes: largest single file the script may write.
      num_processes: processes and threads alive at once.
    """

    wall_s: float = 20.0
    cpu_s: float = 20.0
    memory_bytes: int = 2 << 30
    output_bytes: int = 1 << 20
    file_bytes: int = 64 << 20
    num_processes: int = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class HumanScores:
    """What people reached on a task's real data.

    Attributes:
      gold: score that a gold medal took.
      silver: score that a silver medal took.
      bronze: score that a bronze medal took.
      median: of all teams.
      num_teams: on that leaderboard.
      medals: whether medals mean anything on our split of the data.
      medals_note: why they do not, empty if they do.
      provenance: where the numbers come from.
    """

    gold: float
    silver: float
    bronze: float
    median: float
    num_teams: int
    medals: bool
    medals_note: str
    provenance: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One machine-learning problem as the agent meets it.

    Attributes:
      id: folder name under tasks/, also the name in every table.
      version: raised whenever data, metric or starter change.
      split: "held_in" tasks are trained on, "held_out" ones never.
      modality: "image", "tabular", "text" or "graph"; for reports.
      description: statement for the prompt, plain text.
      metric: name in `env.grading.METRICS`.
      direction: "max" if a higher score is better.
      id_column: column of the submission that names rows.
      target_columns: columns the agent predicts, in order.
      classes: allowed labels of a metric on classes, as they stand in a CSV file;
        empty for metrics on numbers.
      target_range: lowest and highest number that a submission may hold, or None.
      optional_columns: further columns that a submission may hold; they are ignored.
      sample_file: public file that shows the format of a submission.
      source: where the data comes from.
      is_deterministic: whether a script that seeds itself gives one result; if not,
        its executions are never cached.
      human: thresholds of people; None unless the data is real and has a leaderboard.
      starter: relative path -> text of every file in a fresh workspace.
      entry_script: file of `starter` that a successful edit executes.
      baseline: measured mean selection-and-test score of the starter (m_init).
      baseline_std: its standard deviation over seeds, 0.0 if deterministic.
      best: best known score (m_best).
      limits: resources of one execution.
      public_dir: prepared data that scripts read as `data/`.
      private_dir: hidden labels; never mounted into a sandbox.
      file_hashes: "public/x" or "private/x" -> sha256 of the prepared files.
    """

    id: str
    version: int
    split: Split
    modality: str
    description: str
    metric: str
    direction: Direction
    id_column: str
    target_columns: tuple[str, ...]
    starter: dict[str, str]
    entry_script: str
    baseline: float
    baseline_std: float
    best: float
    limits: Limits
    public_dir: Path
    private_dir: Path
    file_hashes: dict[str, str]
    classes: tuple[str, ...] = ()
    target_range: tuple[float, float] | None = None
    optional_columns: tuple[str, ...] = ()
    sample_file: str = "sample_submission.csv"
    source: Source = "pack"
    is_deterministic: bool = True
    human: HumanScores | None = None

    @property
    def sign(self) -> float:
        """+1.0 if a higher score is better, else -1.0."""
        return 1.0 if self.direction == "max" else -1.0

    @property
    def headroom(self) -> float:
        """|best - baseline|: the gap that rewards are scaled by."""
        return abs(self.best - self.baseline)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a chat: role is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Action:
    """What one model reply asks for.

    Attributes:
      kind: which action.
      path: workspace-relative file; None where the action takes none. A `list` with
        a path shows that folder alone; an `undo` with one takes back the newest
        edit of that file, without one the newest edit of the workspace.
      target: file that `copy` and `ask_edit` write; None for all others.
      blocks: (search, replace) texts of an `edit`, in order; else empty.
      first_line: first line (1-based, inclusive) of `lines`, `read` or `inspect`.
      last_line: last line (inclusive) of the same, or None.
      content: new text of `lines` or `write`, the instruction of `ask_edit`, what to
        look for of `understand`, the words of a `submit`; else "".
      thought: text of the reply outside the action.
    """

    kind: ActionKind
    path: str | None = None
    target: str | None = None
    blocks: tuple[tuple[str, str], ...] = ()
    first_line: int | None = None
    last_line: int | None = None
    content: str = ""
    thought: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditorCall:
    """What the editor of "Edit Script (AI)" was asked and what it answered.

    Attributes:
      model: name of the editor policy, e.g. "editor" or "api:qwen@http://...".
      seed: seed of the request.
      prompt_hash: SHA-256 of the messages, as hexadecimal digits.
      reply: the editor's reply, verbatim.
      is_cached: True if an earlier call with the same three values answered.
    """

    model: str
    seed: int
    prompt_hash: str
    reply: str
    is_cached: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecResult:
    """How one script execution ended; a failing script is a result, not an error.

    Attributes:
      outcome: SCORED is never set here (the grader decides); a clean exit is INFO.
      exit_code: exit status, or None if a signal ended the process.
      signal: number of the signal that ended it, or None.
      wall_s: wall-clock seconds of the script's own work.
      cpu_s: user plus system seconds.
      max_rss_bytes: peak resident memory of its largest process.
      stdout: head and tail of standard output, decoded with replacement.
      stderr: head and tail of standard error.
      stdout_bytes: bytes written to standard output before cutting.
      stderr_bytes: bytes written to standard error before cutting.
      integrity_events: what the sandbox noticed, e.g. "protected_file:data/x".
      is_cached: True if the execution cache answered.
      milestones: what the sandbox saw the script achieve: "data_read", "ran_to_end",
        "submission_written"; empty in records of earlier versions.
    """

    outcome: Outcome
    exit_code: int | None
    signal: int | None
    wall_s: float
    cpu_s: float
    max_rss_bytes: int
    stdout: str
    stderr: str
    stdout_bytes: int
    stderr_bytes: int
    integrity_events: tuple[str, ...] = ()
    is_cached: bool = False
    milestones: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """Where one action starts: the task and all that happened before.

    Attributes:
      task_id: which task.
      task_version: version of the task when the state was recorded.
      snapshot: id of the exact workspace files (see env.snapshots).
      score: selection score of the last scored workspace, m_t.
      steps: the steps that led here, oldest first.
      previous_snapshots: stack that `undo` pops, oldest first.
    """

    task_id: str
    task_version: int
    snapshot: str
    score: float
    steps: "tuple[StepRecord, ...]" = ()
    previous_snapshots: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One (state, action, feedback) of a trajectory, as stored.

    Attributes:
      reply: the policy's reply, verbatim (cut at `env.max_reply_chars`).
      action: the parsed action, None if the reply held none.
      reason: code of the ActionError or SubmissionError, "" if there was none.
      outcome: typed feedback.
      status: whether the trajectory goes on.
      feedback: text that the agent sees next.
      diff: unified diff of the workspace, "" if nothing changed.
      snapshot_before: workspace the action started from.
      snapshot_after: workspace after it.
      score_before: m_t, selection score.
      score_after: m_{t+1}; equals score_before unless the outcome is SCORED or
        an undo restored an older score.
      is_edit: True if the action changed files and its script was executed.
      execution: details of the script run, None if nothing ran.
      submission: blob id of the graded submission.csv, None if none was valid.
      isolation: "bubblewrap" or "process (not isolated)".
      env_s: seconds of the environment's own work around the script.
      profile: the action profile that the reply was read in.
      task_version: version of the task that the step was taken on; 0 if unknown.
      edit: the editor's part in an `ask_edit`, None for all others.
      reward_parts: preset -> named terms of its reward, with the default settings of
        every preset; empty if unknown.
      integrity_events: what looks like tampering or a leak, "kind:detail": those of
        the execution and those that the grader's side noticed.
      cache_check: whether a cached execution was repeated for comparison, and how
        that ended; "" if it was not.
    """

    reply: str
    action: Action | None
    reason: str
    outcome: Outcome
    status: StepStatus
    feedback: str
    diff: str
    snapshot_before: str
    snapshot_after: str
    score_before: float
    score_after: float
    is_edit: bool
    execution: ExecResult | None
    submission: str | None
    isolation: str
    env_s: float
    profile: ProfileName = "direct"
    task_version: int = 0
    edit: EditorCall | None = None
    reward_parts: dict[str, dict[str, float]] = dataclasses.field(
        default_factory=dict[str, dict[str, float]]
    )
    integrity_events: tuple[str, ...] = ()
    cache_check: Literal["", "same", "different"] = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One whole attempt at a task by one policy; a line of a JSONL file.

    Attributes:
      id: unique in its file, e.g. "digits/expert/0007".
      format: version of the stored form, `TRAJECTORY_FORMAT`.
      task_id: which task.
      task_version: its version.
      policy: name of the policy.
      seed: integer that determines the policy's choices.
      ideas: idea texts put into the first prompt, empty for none.
      start_snapshot: the fresh workspace.
      start_score: selection score of the starter as measured in this run.
      start_submission: blob id of the starter's own submission, None if unknown.
      steps: oldest first.
      status: why it ended.
      usage: counters such as prompt_tokens, reply_tokens, policy_s, wall_s.
    """

    id: str
    format: int = TRAJECTORY_FORMAT
    task_id: str
    task_version: int
    policy: str
    seed: int
    ideas: tuple[str, ...]
    start_snapshot: str
    start_score: float
    start_submission: str | None
    steps: tuple[StepRecord, ...]
    status: StepStatus
    usage: dict[str, float]

    @classmethod
    def upgrade_json(cls, value: dict[str, Any], where: str) -> dict[str, Any]:
        """Returns the stored form `value` as today's version would have written it.

        Raises:
          DataError: it is of a version that this one does not know.
        """
        version: Any = value.get("format", 1)  # the first had no number
        if version == TRAJECTORY_FORMAT:
            return value
        if version != 1:
            raise DataError(
                f"{where}: trajectory format {version!r}; this version of mlagent_jax "
                f"reads 1 to {TRAJECTORY_FORMAT}. Use the one that wrote the file, or "
                "collect again"
            )
        steps: Any = value.get("steps")
        if isinstance(steps, list):  # whatever else is wrong, the reader will name
            task_version: Any = value.get("task_version", 0)
            steps = [
                _upgrade_step_1(cast(dict[str, Any], step), task_version)
                if isinstance(step, dict)
                else step
                for step in cast(list[Any], steps)
            ]
        return {**value, "format": TRAJECTORY_FORMAT, "steps": steps}


def _upgrade_step_1(step: dict[str, Any], task_version: Any) -> dict[str, Any]:
    """Returns a step of trajectory format 1, which had the `direct` profile only."""
    execution: Any = step.get("execution")
    events: Any = []
    if isinstance(execution, dict):
        events = cast(dict[str, Any], execution).get("integrity_events", [])
    return {**step, "task_version": task_version, "integrity_events": events}
