"""How a prompt puts steps, scores and texts: in a word, a line, a few digits.

Verdicts ("better", "worse", ...) come from the typed outcome and already account
for the metric's direction, so a reader needs no arithmetic and no tasks' units.
"""

from collections.abc import Sequence

from mlagent_jax.types import Action, ActionKind, Outcome, StepRecord

IDEAS_HEADING = "Ideas to try:"
_GIST_CHARS = 28
_IDEA_CHARS = 600

# Verdicts of steps whose outcome alone tells what happened.
FAILURES = {
    Outcome.INVALID_ACTION: "invalid",
    Outcome.SCRIPT_ERROR: "error",
    Outcome.TIMEOUT: "timeout",
    Outcome.OUT_OF_MEMORY: "out of memory",
    Outcome.RESOURCE_LIMIT: "limit",
    Outcome.INVALID_SUBMISSION: "bad submission",
}


def verdict(step: StepRecord, sign: float) -> str:
    """Returns in a word or two what became of a step; "" if it scored nothing.

    Args:
      step: the recorded step.
      sign: +1.0 if a higher score is better, else -1.0.
    """
    if step.outcome in FAILURES:
        return FAILURES[step.outcome]
    if step.outcome is not Outcome.SCORED:
        return ""
    gain = sign * (step.score_after - step.score_before)
    if gain == 0:
        return "same"
    return "better" if gain > 0 else "worse"


def action_gist(action: Action | None) -> str:
    """Returns the few words by which the log names an action.

    For edits that is the first line that the action adds, cut short, so an edit that is
    made once more has the name it had before.
    """
    if action is None:
        return "no action"
    if action.kind is ActionKind.EDIT:
        return code_gist(changed_line(action.blocks))
    if action.kind is ActionKind.LINES:
        return code_gist(action.content)
    if action.kind in {ActionKind.WRITE, ActionKind.READ, ActionKind.RUN}:
        return f"{action.kind} {action.path}"
    return str(action.kind)


def code_gist(code: str) -> str:
    """Returns the first non-empty line of `code`, stripped and cut."""
    lines = (line.strip() for line in code.splitlines())
    return next((line for line in lines if line), "")[:_GIST_CHARS].strip()


def idea_lines(ideas: Sequence[str]) -> list[str]:
    """Returns the heading and one line for each idea, nothing if there is none."""
    lines = [f"- {one_line(idea)[:_IDEA_CHARS]}" for idea in ideas]
    return [IDEAS_HEADING, *lines] if lines else []


def format_score(score: float) -> str:
    """Returns `score` with four significant digits, integers from 1000 upwards."""
    return f"{score:.0f}" if abs(score) >= 1000 else f"{score:.4g}"


def changed_line(blocks: Sequence[tuple[str, str]]) -> str:
    """Returns the first line that the blocks add, else remove, else leave alone."""
    removed = ""
    for search, replace in blocks:
        before, after = search.splitlines(), replace.splitlines()
        added = [line for line in after if line.strip() and line not in before]
        if added:
            return added[0]
        gone = [line for line in before if line.strip() and line not in after]
        removed = removed or (f"del {gone[0].strip()}" if gone else "")
    return removed or next((search for search, _ in blocks), "")


def one_line(text: str) -> str:
    """Returns the words of `text` with single spaces between them."""
    return " ".join(text.split())


def cut_middle(text: str, max_chars: int) -> str:
    """Returns `text` with its middle left out so that the ends fit `max_chars`."""
    text = text.strip()
    if len(text) <= max_chars:
        return text
    tail_chars = max_chars // 2
    head, tail = text[: max_chars - tail_chars], text[len(text) - tail_chars :]
    return f"{head} [...] {tail}"
