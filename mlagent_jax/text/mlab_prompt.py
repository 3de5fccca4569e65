"""How a state becomes a chat in profile `mlab`, after MLAgentBench's research agent.

The chat is: system (the actions and the form of a reply); a user turn with the
problem; then the last three steps, each the reply and its observation. Older steps
are gone: what the agent must not forget it carries on in its field "Research Plan
and Status". No script is shown; the agent looks for itself. Where MLAgentBench has
a model summarise a long observation, its middle is left out here, so that the same
state always gives the same chat.
"""

import re
from collections.abc import Sequence

from mlagent_jax.config import PromptConfig
from mlagent_jax.errors import ActionError
from mlagent_jax.text.mlab_actions import (
    FIELDS,
    MAX_OBSERVATION_CHARS,
    TOOLS,
    parse_reply,
    usage,
)
from mlagent_jax.text.prompt_reading import PromptStep
from mlagent_jax.text.wording import (
    IDEAS_HEADING,
    cut_middle,
    format_score,
    idea_lines,
    verdict,
)
from mlagent_jax.text.written_edits import edit_gist
from mlagent_jax.types import Action, ActionKind, Message, State, StepRecord, Task

MEMORY_STEPS = 3
"""Steps in the chat where `PromptConfig.history_steps` is None."""

_BRIEF_SYSTEM = "Improve the script. Six fields, one action."
_ROLE = """\
You are a research assistant for machine learning. You work towards the goal below by \
actions: each of your replies asks for one, it is carried out, and you observe the \
result. You may use these eight actions and no others."""
_RULES = """\
Rules
- Look before you change anything: read the task's files, run the script as it is and \
note its score.
- Keep a plan and update it; you remember the last three steps only, so write down \
there what you must not forget. Mark new parts of it with **double asterisks**.
- Write down as confirmed only what an observation showed.
- Scripts run in the workspace, without a network; nothing can be installed. They read \
the folder data/, which is read-only, and write submission.csv.
- All paths are relative and stay inside the workspace.
- Give the final answer when the work is done; the last scored submission counts."""
_FORM = """\
Every reply has exactly these six fields, each once, in this order, each label at the \
start of a line:
Reflection: what the last observation means; after an error, its cause and the remedy
Research Plan and Status: the whole plan with what is done, its results, what is next
Fact Check: for each new statement in the plan, whether it is guessed or confirmed by \
an observation
Thought: what to do now and why
Action: the name of one action
Action Input: its input, one JSON object with exactly the keys shown above"""
_OBSERVATION = re.compile(r"Observation(?: \(([a-z ]+)\))?:")


def history_steps(cfg: PromptConfig) -> int:
    """Returns how many of the last steps a chat shows as turns."""
    return MEMORY_STEPS if cfg.history_steps is None else cfg.history_steps


def window_snapshot(state: State, cfg: PromptConfig) -> str:
    """Returns the workspace before the steps that the chat shows."""
    shown = _shown_steps(state, cfg)
    return shown[0].snapshot_before if shown else state.snapshot


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
      script: not shown; every profile is given it.
      cfg: style, history and cuts.
      ideas: texts to try, shown in the first user turn; empty for none.
    """
    del script
    is_brief = cfg.style == "brief"
    shown = _shown_steps(state, cfg)
    num_older = len(state.steps) - len(shown)
    messages = [
        Message(role="system", content=_BRIEF_SYSTEM if is_brief else _system()),
        Message(role="user", content=_problem(task, state, num_older, cfg, ideas)),
    ]
    for step in shown:
        messages.append(Message(role="assistant", content=step.reply))
        messages.append(_observation(step, task.sign, cfg))
    return tuple(messages)


def read_steps(messages: Sequence[Message]) -> tuple[PromptStep, ...]:
    """Returns the past steps that a chat of `render_state` shows, oldest first."""
    steps: list[PromptStep] = []
    for reply, observation in zip(messages[2::2], messages[3::2], strict=True):
        try:
            action = parse_reply(reply.content, max_chars=len(reply.content))
        except ActionError:
            action = None
        match = _OBSERVATION.match(observation.content)
        word = (match[1] or "") if match else ""
        steps.append(PromptStep(gist=_gist(action), verdict=word))
    return tuple(steps)


def read_ideas(messages: Sequence[Message]) -> tuple[str, ...]:
    """Returns the ideas that a chat of `render_state` puts to its reader."""
    lines = messages[1].content.split("\n")
    if IDEAS_HEADING not in lines:
        return ()
    ideas: list[str] = []
    for line in lines[lines.index(IDEAS_HEADING) + 1 :]:
        if not line.startswith("- "):
            break
        ideas.append(line[2:])
    return tuple(ideas)


def _shown_steps(state: State, cfg: PromptConfig) -> tuple[StepRecord, ...]:
    return state.steps[max(0, len(state.steps) - history_steps(cfg)) :]


def _system() -> str:
    tools = [
        f"- {name}: {tool.purpose} You then see {tool.returns}.\n"
        f"  Action Input: {usage(name)}"
        for name, tool in TOOLS.items()
    ]
    return "\n".join([_ROLE, "", *tools, "", _RULES, "", _FORM])


def _problem(
    task: Task,
    state: State,
    num_older: int,
    cfg: PromptConfig,
    ideas: Sequence[str],
) -> str:
    start = state.steps[0].score_before if state.steps else state.score
    better = "higher" if task.direction == "max" else "lower"
    is_brief = cfg.style == "brief"
    description = task.description.strip()
    lines = [
        f"Research problem: {task.id}",
        description.partition("\n")[0] if is_brief else description,
        "",
        f"Metric: {task.metric}, {better} is better. Score of {task.entry_script} at "
        f"the start: {format_score(start)}.",
    ]
    if not is_brief:
        lines.append(
            f"Entry script: {task.entry_script}. One run may take "
            f"{task.limits.wall_s:g} seconds and {task.limits.memory_bytes >> 20} MiB."
        )
    lines += idea_lines(ideas)
    if num_older:
        lines.append(f"[{num_older} earlier steps are done and no longer shown]")
    lines.append(f"Write the next reply: {', '.join(FIELDS)}.")
    return "\n".join(lines)


def _observation(step: StepRecord, sign: float, cfg: PromptConfig) -> Message:
    word = verdict(step, sign)
    heading = f"Observation ({word}):" if word else "Observation:"
    max_chars = min(cfg.max_feedback_chars, MAX_OBSERVATION_CHARS)
    text = cut_middle(step.feedback, max_chars)
    return Message(role="user", content=f"{heading}\n{text}")


def _gist(action: Action | None) -> str:
    """Returns the words by which the scripted expert knows a step of its own."""
    if action is None:
        return "no action"
    if action.kind is ActionKind.ASK_EDIT:
        return edit_gist(action.content)
    name = {ActionKind.INSPECT: "read", ActionKind.UNDERSTAND: "read"}
    if action.kind in {ActionKind.INSPECT, ActionKind.UNDERSTAND, ActionKind.RUN}:
        return f"{name.get(action.kind, action.kind)} {action.path}"
    return str(action.kind)
