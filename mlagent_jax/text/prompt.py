"""How a state becomes a chat: the one renderer that every model and stage uses.

The chat is: system; a user turn that states the task, the scores, one line for
each older step and the script as it was before the shown history; then, for each
of the last `history_steps` steps, the reply and its feedback. Style `full` teaches
the actions to a model that never saw them. Style `brief` leaves the teaching out,
because a small model learns the format by training and every token costs it.
"""

import re
from collections.abc import Iterable, Sequence

from mlagent_jax.config import PromptConfig
from mlagent_jax.text.wording import (
    action_gist,
    cut_middle,
    format_score,
    idea_lines,
    one_line,
    verdict,
)
from mlagent_jax.types import (
    ActionKind,
    Message,
    Outcome,
    State,
    StepRecord,
    Task,
)

LOG_HEADING = "Log:"
_BRIEF_LAST_CHARS = 48

_BRIEF_SYSTEM = "Improve the script. One action."
# What can be asked for stands last: small models look there.
_BRIEF_CLOSING = "Edit, undo or submit:"
_BRIEF_CLOSING_UNCHANGED = "Edit or submit:"
_FULL_CLOSING = (
    "Changes that undo can take back: {num_undoable}. "
    "Think in one or two sentences, then give exactly one action. "
    "It is carried out at once and you see the result."
)
_FULL_SYSTEM = """\
You are a machine-learning engineer. You improve a training script step by step: \
each of your replies asks for one action, the environment carries it out, and you \
see what came of it. A successful change of the entry script runs it at once and \
scores the submission that it writes.

A reply is a short thought followed by exactly one of these eight actions. Tags \
stand at the start of a line; attribute values stand in double quotes.

1. edit: replace text. Every SEARCH part is one or more whole lines, copied exactly, \
that occur once in the file. Several blocks may follow each other.
<edit path="train.py">
<<<<<<< SEARCH
model = linear_model.Ridge()
=======
model = linear_model.Ridge(alpha=10.0)
>>>>>>> REPLACE
</edit>

2. lines: replace a range of lines; both ends count, numbering starts at 1.
<lines path="train.py" first="3" last="5">
features = features.fillna(0)
</lines>

3. write: create a file or replace it as a whole.
<write path="helpers.py">
def double(x):
    return 2 * x
</write>

4. read: see a file with line numbers; first and last are optional.
<read path="train.py" first="1" last="40"/>

5. list: see the files of the workspace.
<list/>

6. run: execute a script as it is.
<run path="train.py"/>

7. undo: go back to the workspace before the last change.
<undo/>

8. submit: end the work; the last scored submission counts.
<submit/>

Rules
- Scripts run in the workspace, without a network. They read the folder data/ and \
write submission.csv.
- data/ is read-only. Paths are relative and stay inside the workspace.
- A change that fails or makes the score worse stays until you undo it or edit again."""


def history_steps(cfg: PromptConfig) -> int | None:
    """Returns how many of the last steps a chat shows as turns; None shows all."""
    return cfg.history_steps


def window_snapshot(state: State, cfg: PromptConfig) -> str:
    """Returns the snapshot whose entry script the prompt of `state` shows.

    The turns of the chat start from that script, so the reader can follow every
    shown edit from the text it was made on.
    """
    num_older = _num_older(state.steps, cfg)
    if num_older < len(state.steps):
        return state.steps[num_older].snapshot_before
    return state.snapshot


def render_state(
    task: Task,
    state: State,
    script: str,
    cfg: PromptConfig,
    ideas: Sequence[str] = (),
) -> tuple[Message, ...]:
    """Returns the chat that asks for the next action in `state`.

    Args:
      task: the task of the state.
      state: where the action starts.
      script: entry script of the snapshot `window_snapshot(state, cfg)`.
      cfg: style, history and cuts.
      ideas: texts to try, shown in the first user turn; empty for none.
    """
    num_older = _num_older(state.steps, cfg)
    older, shown = state.steps[:num_older], state.steps[num_older:]
    score = shown[0].score_before if shown else state.score
    start = state.steps[0].score_before if state.steps else state.score
    is_brief = cfg.style == "brief"
    head = _brief_head if is_brief else _full_head
    parts = head(task, start, score)
    parts += idea_lines(ideas)
    parts += [""] if ideas and not is_brief else []
    parts += _log_lines(older, task.sign, cfg)
    parts += [""] if older and not is_brief else []
    if older and (not is_brief or _has_news(older[-1])):
        parts.append(_last_feedback(older[-1], cfg))
    parts += _fenced(task.entry_script, script, is_brief=is_brief)
    parts.append(_closing(_num_undoable(older), is_brief=is_brief))
    messages = [
        Message(role="system", content=_BRIEF_SYSTEM if is_brief else _FULL_SYSTEM),
        Message(role="user", content="\n".join(parts)),
    ]
    for number, step in enumerate(shown, num_older + 1):
        messages.append(Message(role="assistant", content=step.reply))
        messages.append(_feedback_turn(number, step, task.sign, cfg))
    return tuple(messages)


def _num_older(steps: Sequence[StepRecord], cfg: PromptConfig) -> int:
    if cfg.history_steps is None:
        return 0
    return max(0, len(steps) - cfg.history_steps)


def _num_undoable(steps: Iterable[StepRecord]) -> int:
    """Returns how many changes `undo` can take back after `steps`."""
    num = 0
    for step in steps:
        is_undo = step.action is not None and step.action.kind is ActionKind.UNDO
        if step.is_edit:
            num += 1
        elif is_undo and step.outcome is not Outcome.INVALID_ACTION:
            num -= 1
    return num


def _brief_head(task: Task, start: float, score: float) -> list[str]:
    summary = task.description.strip().partition("\n")[0]
    return [
        f"Task: {task.id}. {summary}",
        f"Metric: {task.metric}, {_better(task)} is better. "
        f"Start: {format_score(start)}. Now: {format_score(score)}.",
    ]


def _full_head(task: Task, start: float, score: float) -> list[str]:
    return [
        f"# Task: {task.id}",
        task.description.strip(),
        "",
        f"Metric: {task.metric}, {_better(task)} is better.",
        f"Score of the script at the start: {format_score(start)}. "
        f"Score now: {format_score(score)}.",
        f"Entry script: {task.entry_script}. One run may take "
        f"{task.limits.wall_s:g} seconds and {task.limits.memory_bytes >> 20} MiB.",
        "",
    ]


def _closing(num_undoable: int, *, is_brief: bool) -> str:
    if not is_brief:
        return _FULL_CLOSING.format(num_undoable=num_undoable)
    return _BRIEF_CLOSING if num_undoable else _BRIEF_CLOSING_UNCHANGED


def _better(task: Task) -> str:
    return "higher" if task.direction == "max" else "lower"


def _log_lines(
    older: Sequence[StepRecord], sign: float, cfg: PromptConfig
) -> list[str]:
    """Returns the heading and one line for each of the last `cfg.log_steps` steps."""
    first = max(0, len(older) - cfg.log_steps)
    lines = [
        _log_line(number, step, sign, cfg)
        for number, step in enumerate(older[first:], first + 1)
    ]
    return [LOG_HEADING, *lines] if lines else []


def _log_line(number: int, step: StepRecord, sign: float, cfg: PromptConfig) -> str:
    line = f"{number} {action_gist(step.action)}"
    word = verdict(step, sign)
    if cfg.style == "full" and step.score_after != step.score_before:
        scores = (
            f"{format_score(step.score_before)} -> {format_score(step.score_after)}"
        )
        word = f"{word}, {scores}" if word else scores
    return f"{line}: {word}" if word else line


def _has_news(step: StepRecord) -> bool:
    """True if the feedback says more than the log line and the scores do."""
    is_undo = step.action is not None and step.action.kind is ActionKind.UNDO
    return step.outcome is not Outcome.SCORED and not is_undo


def _last_feedback(step: StepRecord, cfg: PromptConfig) -> str:
    if cfg.style == "brief":
        lines = [line for line in step.feedback.splitlines() if line.strip()] or [""]
        # A traceback ends with what went wrong; all other texts begin with it.
        is_traceback = step.outcome is Outcome.SCRIPT_ERROR
        line = one_line(lines[-1 if is_traceback else 0])
        return f"Last: {line[: min(cfg.max_feedback_chars, _BRIEF_LAST_CHARS)]}"
    return f"Last feedback:\n{cut_middle(step.feedback, cfg.max_feedback_chars)}\n"


def _feedback_turn(
    number: int, step: StepRecord, sign: float, cfg: PromptConfig
) -> Message:
    feedback = cut_middle(step.feedback, cfg.max_feedback_chars)
    word = verdict(step, sign)
    if cfg.style == "brief":
        text = f"{word}\n{feedback}" if word else feedback
    else:
        text = f"Step {number}: {word}\n{feedback}" if word else feedback
    return Message(role="user", content=text)


def _fenced(path: str, script: str, *, is_brief: bool) -> list[str]:
    """Returns the script in a fence that is longer than any fence inside it."""
    longest = max((len(run) for run in re.findall(r"`{3,}", script)), default=2)
    fence = "`" * (longest + 1)
    opening = fence if is_brief else f"{path}:\n{fence}python"
    return [opening, script.rstrip("\n"), fence]
