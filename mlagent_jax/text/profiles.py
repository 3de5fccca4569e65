"""The two action profiles behind one interface: how replies and prompts are written.

`direct`: the policy writes the edit itself (`text.actions`, `text.prompt`). `mlab`:
MLAgentBench's actions and fields (`text.mlab_actions`, `text.mlab_prompt`). What an
action does to a workspace does not depend on the profile.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from mlagent_jax.config import PromptConfig
from mlagent_jax.text import (
    actions,
    mlab_actions,
    mlab_prompt,
    prompt,
    prompt_reading,
)
from mlagent_jax.text.written_edits import write_instruction
from mlagent_jax.types import (
    Action,
    ActionKind,
    Message,
    ProfileName,
    State,
    Task,
)


class _ParseReply(Protocol):
    def __call__(self, reply: str, *, max_chars: int) -> Action: ...


class _RenderState(Protocol):
    def __call__(
        self,
        task: Task,
        state: State,
        script: str,
        cfg: PromptConfig,
        ideas: Sequence[str] = (),
    ) -> tuple[Message, ...]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """One way to write actions and prompts.

    Attributes:
      name: as in `EnvConfig.profile`.
      parse_reply: reply -> the action it asks for; raises `ActionError`.
      render_action: action -> a reply that asks for it; raises `ValueError`.
      render_state: state -> the chat that asks for the next action.
      history_steps: how many of the last steps `render_state` shows as turns; None
        shows all.
      window_snapshot: state -> the snapshot whose entry script `render_state` needs.
      read_ideas: chat -> the ideas in it (for the scripted expert).
      read_steps: chat -> the past steps in it (for the scripted expert).
      express: (action of `direct`, entry script) -> the same in this profile.
      list_hint: how the agent may see which files there are.
    """

    name: ProfileName
    parse_reply: _ParseReply
    render_action: Callable[[Action], str]
    render_state: _RenderState
    history_steps: Callable[[PromptConfig], int | None]
    window_snapshot: Callable[[State, PromptConfig], str]
    read_ideas: Callable[[Sequence[Message]], tuple[str, ...]]
    read_steps: Callable[[Sequence[Message]], tuple[prompt_reading.PromptStep, ...]]
    express: Callable[[Action, str], Action]
    list_hint: str


def _as_it_is(action: Action, entry_script: str) -> Action:
    del entry_script
    return action


def _in_words(action: Action, entry_script: str) -> Action:
    """Returns an action of `direct` as one of `mlab`."""
    match action.kind:
        case ActionKind.EDIT:
            return dataclasses.replace(
                action,
                kind=ActionKind.ASK_EDIT,
                target=action.path,
                blocks=(),
                content=write_instruction(action.blocks),
            )
        case ActionKind.READ:
            return dataclasses.replace(action, kind=ActionKind.UNDERSTAND)
        case ActionKind.LIST:
            return dataclasses.replace(action, path=".")
        case ActionKind.UNDO:
            return dataclasses.replace(action, path=entry_script)
        case _:
            return action


DIRECT = Profile(
    name="direct",
    parse_reply=actions.parse_reply,
    render_action=actions.render_action,
    render_state=prompt.render_state,
    history_steps=prompt.history_steps,
    window_snapshot=prompt.window_snapshot,
    read_ideas=prompt_reading.read_ideas,
    read_steps=prompt_reading.read_steps,
    express=_as_it_is,
    list_hint="<list/> shows all.",
)
MLAB = Profile(
    name="mlab",
    parse_reply=mlab_actions.parse_reply,
    render_action=mlab_actions.render_action,
    render_state=mlab_prompt.render_state,
    history_steps=mlab_prompt.history_steps,
    window_snapshot=mlab_prompt.window_snapshot,
    read_ideas=mlab_prompt.read_ideas,
    read_steps=mlab_prompt.read_steps,
    express=_in_words,
    list_hint="List Files shows all.",
)


def get_profile(name: ProfileName) -> Profile:
    """Returns the profile of a name."""
    return DIRECT if name == "direct" else MLAB
