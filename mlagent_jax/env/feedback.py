"""What the agent reads about its step.

The texts depend on the state, the action and what the script printed, and on nothing
that varies between machines or runs: no durations, no host paths, no addresses. Their
wording is part of the training data; keep it stable.
"""

import re

from mlagent_jax.env.looks import fit_observation
from mlagent_jax.errors import ActionError, SubmissionError
from mlagent_jax.text.actions import replace_surrogates
from mlagent_jax.text.wording import format_score
from mlagent_jax.types import ExecResult, Outcome, Task

_MAX_OUTPUT_CHARS = 1_500

_FILE_FRAME = re.compile(r'(?<=File ")/[^"\n]*(?=")')
_HOST_PATH = re.compile(
    r"""(?<![\w.:/~])/(?:[^\s/"'`:,;()<>\[\]]++/)++[^\s"'`:,;()<>\[\]]*"""
)
_PACKAGE_PATH = re.compile(r".*/(?:site-packages|dist-packages|python3\.\d+)/")
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")


def action_text(error: ActionError) -> str:
    """Returns the feedback to a reply that asks for nothing that can be done."""
    return f"Invalid action ({error.reason}). {error}"


def submission_text(error: SubmissionError, result: ExecResult) -> str:
    """Returns the feedback to a script whose submission cannot be scored."""
    output = _output_text("Output", result.stdout)
    return f"Invalid submission ({error.reason}). {error}{output}"


def score_text(task: Task, before: float, after: float, result: ExecResult) -> str:
    """Returns the feedback to a script whose submission was scored."""
    better = "higher" if task.direction == "max" else "lower"
    return (
        f"Score: {format_score(after)} (was {format_score(before)}, {better} is "
        f"better).{_output_text('Output', result.stdout)}"
    )


def undo_text(score: float) -> str:
    """Returns the feedback to an undo that leads back to `score`."""
    return f"The last change is undone. Score: {format_score(score)}."


def saved_text(path: str, diff: str) -> str:
    """Returns the start of the feedback to an edit that an editor made."""
    return f"The edited file is saved as {path}. The change:\n{diff}"


def restored_text(path: str, content: bytes | None) -> str:
    """Returns the feedback to an undo of one file; None means that it is gone."""
    if content is None:
        return f"The last edit of {path} is undone; the file did not exist before it."
    text = fit_observation(content.decode(errors="replace"))
    return f"The last edit of {path} is undone. The file is now:\n{text}"


def failure_text(task: Task, script: str, result: ExecResult) -> str:
    """Returns what the agent reads about a script that did not end well.

    What a script printed before it met a limit depends on the machine's speed and is
    left out.
    """
    limits = task.limits
    match result.outcome:
        case Outcome.TIMEOUT:
            return (
                f"{script} was stopped: it ran longer than its limit of "
                f"{limits.wall_s:g} seconds."
            )
        case Outcome.OUT_OF_MEMORY:
            return (
                f"{script} was stopped: it needed more than its limit of "
                f"{limits.memory_bytes >> 20} MiB of memory."
            )
        case Outcome.RESOURCE_LIMIT:
            return (
                f"{script} was stopped: it exceeded a limit on output "
                f"({limits.output_bytes >> 10} KiB), files ({limits.file_bytes >> 20} "
                f"MiB each) or processes ({limits.num_processes})."
            )
        case _:
            how = (
                f"exit code {result.exit_code}"
                if result.exit_code is not None
                else f"signal {result.signal}"
            )
            return f"{script} failed ({how}).{_output_text('Error', result.stderr)}"


def _output_text(heading: str, text: str) -> str:
    """Returns the tail of what a script printed, under a heading, "" if nothing."""
    text = _without_host_traces(text).strip()
    if not text:
        return ""
    if len(text) > _MAX_OUTPUT_CHARS:
        tail = text[-_MAX_OUTPUT_CHARS:]
        text = "[...]\n" + (tail.partition("\n")[2] or tail)
    return f"\n{heading}:\n{text}"


def _without_host_traces(text: str) -> str:
    """Returns `text` without host paths and memory addresses."""
    text = replace_surrogates(text.replace("\r\n", "\n"))
    text = _FILE_FRAME.sub(lambda match: _short_path(match[0]), text)
    text = _HOST_PATH.sub(lambda match: _short_path(match[0]), text)
    return _ADDRESS.sub("0x...", text)


def _short_path(path: str) -> str:
    """Returns a path from its package on, else the file's name."""
    inside = _PACKAGE_PATH.sub("", path)
    return inside if inside != path else path.rpartition("/")[2]
