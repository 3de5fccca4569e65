"""What `launch.run_agent` shows and leaves behind: lines, one page, files."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from mlagent_jax.config import EnvConfig, RewardConfig
from mlagent_jax.env.reward import trajectory_rewards
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.step_loop import StepJob
from mlagent_jax.evaluation.records import EvalRecord, score_trajectory
from mlagent_jax.text.actions import summarize_action
from mlagent_jax.text.wording import format_score, verdict
from mlagent_jax.types import Outcome, StepRecord, Task, Trajectory

_MAX_DIFF_LINES = 14
_MAX_TEXT_LINES = 6
_MAX_LINE_CHARS = 100


def task_heading(task: Task, policy: str, env: EnvConfig) -> str:
    """Returns the first lines: what is to be done, by whom, within what."""
    better = "higher" if task.direction == "max" else "lower"
    return (
        f"{task.id}: {task.description.strip().partition(chr(10))[0]}\n"
        f"{task.metric}, {better} is better; starter about "
        f"{format_score(task.baseline)}, best known {format_score(task.best)}.\n"
        f"{policy} works on it: profile {env.profile}, at most {env.max_steps} steps "
        f"and {env.max_time_s / 60:g} minutes a trajectory.\n"
    )


class Watcher:
    """Prints steps as they end; trajectories that run side by side are told apart."""

    def __init__(self, task: Task, num_trajectories: int) -> None:
        self._task = task
        self._is_alone = num_trajectories <= 1

    def show_step(self, job: StepJob, step: StepRecord) -> None:
        """Prints one step."""
        print(self._prefix(job.id) + self.format_step(job, step), flush=True)

    def format_step(self, job: StepJob, step: StepRecord) -> str:
        """Returns the lines about one step."""
        number = len(job.state.steps) + 1
        name = "no action" if step.action is None else summarize_action(step.action)
        words = [f"{number:>3}  {name:<38}", f"{_word(step, self._task.sign):<15}"]
        if step.score_after != step.score_before:
            words.append(
                f"{format_score(step.score_before)} -> {format_score(step.score_after)}"
            )
        if step.execution is not None:
            cached = ", cached" if step.execution.is_cached else ""
            words.append(f"({step.execution.wall_s:.1f} s{cached})")
        lines = [" ".join(words).rstrip()]
        if step.integrity_events:
            lines.append(f"     ! {', '.join(step.integrity_events)}")
        changed = [
            line
            for line in step.diff.splitlines()
            if line[:1] in "+-" and line[:3] not in ("+++", "---")
        ]
        lines += _indented(changed, _MAX_DIFF_LINES)
        if step.outcome not in (Outcome.SCORED, Outcome.INFO):
            text = step.feedback.splitlines()
            # A traceback ends with what went wrong; all other texts begin with it.
            is_traceback = step.outcome is Outcome.SCRIPT_ERROR
            chosen = text[-_MAX_TEXT_LINES:] if is_traceback else text
            lines += _indented(chosen, _MAX_TEXT_LINES)
        return "\n".join(lines)

    def show_end(self, trajectory: Trajectory) -> None:
        """Prints how a trajectory ended."""
        last = trajectory.steps[-1].score_after if trajectory.steps else None
        score = trajectory.start_score if last is None else last
        print(
            f"{self._prefix(trajectory.id)}     {trajectory.status.value}: "
            f"{format_score(trajectory.start_score)} -> {format_score(score)} in "
            f"{len(trajectory.steps)} steps\n",
            flush=True,
        )

    def _prefix(self, trajectory_id: str) -> str:
        return "" if self._is_alone else f"[{trajectory_id}]\n"


def write_results(
    workdir: Path, task: Task, trajectories: Sequence[Trajectory], store: SnapshotStore
) -> str:
    """Writes best/ and summary.md; returns the page.

    The best script is chosen by its selection score. The test score beside it is
    looked at here for the first time and chooses nothing.
    """
    records = [_score(trajectory, task, store) for trajectory in trajectories]
    snapshot, submission, owner = best_workspace(task, trajectories)
    best_dir = workdir / "best"
    shutil.rmtree(best_dir, ignore_errors=True)
    for path, content in store.get(snapshot).items():
        target = best_dir / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    if submission is not None:
        (best_dir / "submission.csv").write_bytes(store.get_blob(submission))
    page = summary_page(workdir, task, records, owner)
    (workdir / "summary.md").write_text(page)
    return page


def best_workspace(
    task: Task, trajectories: Sequence[Trajectory]
) -> tuple[str, str | None, str]:
    """Returns (snapshot, submission, trajectory id) of the best selection score.

    The snapshot is the one after the script ran; ties go to the earliest.
    """
    first = trajectories[0]
    best = (first.start_snapshot, first.start_submission, "the starter script")
    best_score = task.sign * first.start_score
    for trajectory in trajectories:
        for number, step in enumerate(trajectory.steps, 1):
            is_scored = step.outcome is Outcome.SCORED
            if is_scored and task.sign * step.score_after > best_score:
                best_score = task.sign * step.score_after
                owner = f"step {number} of {trajectory.id}"
                best = (step.snapshot_after, step.submission, owner)
    return best


def summary_page(
    workdir: Path, task: Task, records: Sequence[EvalRecord], owner: str
) -> str:
    """Returns the one-page summary as Markdown."""
    better = "higher" if task.direction == "max" else "lower"
    steps = [step for record in records for step in record.trajectory.steps]
    isolation = sorted({step.isolation for step in steps}) or ["nothing was run"]
    events = sorted({event for step in steps for event in step.integrity_events})
    lines = [
        f"# {task.id}: {records[0].trajectory.policy}",
        "",
        f"{time.strftime('%Y-%m-%d')}. Task version {task.version}; {task.metric}, "
        f"{better} is better. Isolation: {', '.join(isolation)}.",
        "Selection scores are what the agent saw; test scores were computed once, now.",
        "",
        "| trajectory | steps | end | start (test) | last submission (test) | "
        "best on selection (test) | gain % | valid actions % |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(record) for record in records),
        "",
        f"The best script by selection score is of {owner}: "
        f"`{workdir / 'best' / task.entry_script}`.",
    ]
    counts = {o: sum(step.outcome is o for step in steps) for o in Outcome}
    used = ", ".join(f"{o.value} {n}" for o, n in counts.items() if n)
    lines += [f"Outcomes of {len(steps)} steps: {used or 'none'}."]
    if events:
        lines += [f"Integrity events: {', '.join(events)}."]
    path = workdir / "trajectories" / "agent.jsonl"
    lines += [f"Repeat them: `python -m launch.replay {path}`.", ""]
    return "\n".join(lines)


def _row(record: EvalRecord) -> str:
    trajectory = record.trajectory
    steps = trajectory.steps
    num_valid = sum(step.outcome is not Outcome.INVALID_ACTION for step in steps)
    valid = f"{100 * num_valid / len(steps):.0f}" if steps else "-"
    scores = [record.start_score, record.final_score, record.selected_score]
    cells = [
        trajectory.id,
        str(len(steps)),
        trajectory.status.value,
        *map(format_score, scores),
        f"{record.selected_gain_percent:+.1f}",
        valid,
    ]
    return f"| {' | '.join(cells)} |"


def _score(trajectory: Trajectory, task: Task, store: SnapshotStore) -> EvalRecord:
    rewards = trajectory_rewards(trajectory, task, RewardConfig())
    return score_trajectory(trajectory, task, store, rewards)


def _word(step: StepRecord, sign: float) -> str:
    word = verdict(step, sign)
    if step.reason:
        return f"{word} ({step.reason})" if word else step.reason
    return word


def _indented(lines: Sequence[str], max_lines: int) -> list[str]:
    shown = [f"     {line[:_MAX_LINE_CHARS]}" for line in lines[:max_lines]]
    if len(lines) > max_lines:
        shown.append(f"     [{len(lines) - max_lines} more lines]")
    return shown
