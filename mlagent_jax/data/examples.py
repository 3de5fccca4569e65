"""Training examples for supervised fine-tuning: chats of trajectories as tokens.

The only place where a loss mask is made. The prompt of an example is the one that
the policy will meet, rendered without the expert's ideas: what the ideas brought
about is learnt as the policy's own choice (context distillation). A reply that was
no valid action stays visible in later prompts but is never a target.

Axis letter: T token positions.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from mlagent_jax.config import PromptConfig, RunConfig
from mlagent_jax.data.mistakes import add_mistakes
from mlagent_jax.data.state_pool import state_before
from mlagent_jax.data.trajectories import TrajectoryFile
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.task import load_tasks
from mlagent_jax.errors import DataError
from mlagent_jax.text.profiles import get_profile
from mlagent_jax.types import Message, Outcome, StepRecord, Task, Trajectory


class Snapshots(Protocol):
    """What examples need of a snapshot store."""

    def get(self, snapshot: str) -> dict[str, bytes]:
        """Returns the files of a snapshot."""
        ...


class ChatEncoder(Protocol):
    """What examples need of a tokenizer."""

    def encode_chat_with_mask(
        self, messages: Sequence[Message]
    ) -> tuple[list[int], list[int]]:
        """Returns tokens and 1 on those of assistant turns, end of turn included."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenExample:
    """One sequence to learn from.

    Attributes:
      name: "<trajectory id>@<steps before the last reply>".
      tokens_T: int32 token ids of prompt and replies.
      loss_mask_T: bool, True on tokens of the replies to imitate, including the
        token that ends each.
    """

    name: str
    tokens_T: np.ndarray
    loss_mask_T: np.ndarray

    @property
    def trajectory_id(self) -> str:
        """Id of the trajectory that the example was cut out of."""
        return self.name.rpartition("@")[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingChat:
    """A chat whose assistant turns are replies of the expert.

    Attributes:
      name: see `TokenExample`.
      messages: ends with the assistant's last reply.
      targets: for each assistant turn, whether it is imitated.
    """

    name: str
    messages: tuple[Message, ...]
    targets: tuple[bool, ...]


def training_chats(
    trajectory: Trajectory, task: Task, store: Snapshots, cfg: PromptConfig
) -> Iterator[TrainingChat]:
    """Yields the chats of a trajectory that hold something to imitate.

    Where prompts show all steps a chat is the whole trajectory and every valid reply a
    target; otherwise there is one chat a step, as the policy would see it, and its
    last reply is the only target.

    Raises:
      DataError: a snapshot lacks the task's entry script.
    """
    steps = trajectory.steps
    profile = get_profile(steps[0].profile if steps else "direct")
    is_whole = profile.history_steps(cfg) is None
    first = len(steps) - 1 if is_whole else 0
    for n in range(max(first, 0), len(steps)):
        state = state_before(trajectory, n)
        snapshot = profile.window_snapshot(state, cfg)
        script = store.get(snapshot).get(task.entry_script)
        if script is None:
            raise DataError(
                f"trajectory {trajectory.id!r}: snapshot {snapshot} has no "
                f"{task.entry_script}; was it recorded on another version of the task?"
            )
        prompt = profile.render_state(
            task, state, script.decode("utf-8", "replace"), cfg
        )
        reply = Message(role="assistant", content=steps[n].reply)
        if is_whole:
            targets = tuple(map(_is_target, steps))
        else:
            num_turns = sum(m.role == "assistant" for m in prompt)
            targets = (False,) * num_turns + (_is_target(steps[n]),)
        if any(targets):
            yield TrainingChat(
                name=f"{trajectory.id}@{n}",
                messages=(*prompt, reply),
                targets=targets,
            )


def sft_examples(
    trajectory: Trajectory,
    task: Task,
    store: Snapshots,
    tokenizer: ChatEncoder,
    cfg: PromptConfig,
) -> Iterator[TokenExample]:
    """Yields the training chats of a trajectory as tokens with their loss mask."""
    for chat in training_chats(trajectory, task, store, cfg):
        yield encode_example(chat, tokenizer)


def expert_chats(
    config: RunConfig, workdir: Path, *, mistake_frac: float = 0.0
) -> Iterator[TrainingChat]:
    """Yields the training chats of a run's expert, in the order of trajectory ids.

    Args:
      config: of the run.
      workdir: run directory with tasks/ and trajectories/.
      mistake_frac: see `SftConfig`.

    Raises:
      DataError: <workdir>/trajectories is missing, damaged, or of other tasks.
      TaskError: the prepared tasks are missing or damaged.
    """
    folder = workdir / "trajectories"
    # The expert worked on held-in tasks alone; training looks at no others.
    tasks = load_tasks(dataclasses.replace(config, held_out=()), workdir)
    store = SnapshotStore(folder)
    for trajectory, task in with_tasks(TrajectoryFile(folder / "expert.jsonl"), tasks):
        revised = add_mistakes(trajectory, task, store, mistake_frac, config.seed)
        yield from training_chats(revised, task, store, config.prompt)


def with_tasks(
    trajectories: Iterable[Trajectory], tasks: Mapping[str, Task]
) -> Iterator[tuple[Trajectory, Task]]:
    """Yields each trajectory with its task.

    Raises:
      DataError: a trajectory is of a task that `tasks` lacks or of another version.
    """
    for trajectory in trajectories:
        task = tasks.get(trajectory.task_id)
        if task is None or task.version != trajectory.task_version:
            have = "is not in this run" if task is None else f"is now {task.version}"
            raise DataError(
                f"trajectory {trajectory.id!r} was recorded on version "
                f"{trajectory.task_version} of task {trajectory.task_id!r}, which "
                f"{have}; collect again into another workdir"
            )
        yield trajectory, task


def encode_example(chat: TrainingChat, tokenizer: ChatEncoder) -> TokenExample:
    """Returns the tokens of a chat; the mask is True on its target turns alone."""
    tokens, mask = tokenizer.encode_chat_with_mask(chat.messages)
    mask_T = np.asarray(mask, dtype=bool)
    # Turns are apart, so the k-th run of ones is the k-th assistant turn.
    is_start_T = mask_T & ~np.concatenate([[False], mask_T[:-1]])
    turn_T = np.cumsum(is_start_T) - 1
    targets = np.asarray(chat.targets, dtype=bool)
    return TokenExample(
        name=chat.name,
        tokens_T=np.asarray(tokens, dtype=np.int32),
        loss_mask_T=mask_T & targets[turn_T],
    )


def truncate(example: TokenExample, num_tokens: int) -> TokenExample | None:
    """Returns an example that fits, cut behind its last whole reply to imitate.

    No reply is ever cut in its middle: one that lacks its end would teach to stop
    anywhere. None if not one reply fits.
    """
    if len(example.tokens_T) <= num_tokens:
        return example
    mask_T = example.loss_mask_T
    is_end_T = mask_T & ~np.append(mask_T[1:], False)
    ends = np.flatnonzero(is_end_T[:num_tokens]) + 1
    if len(ends) == 0:
        return None
    return dataclasses.replace(
        example, tokens_T=example.tokens_T[: ends[-1]], loss_mask_T=mask_T[: ends[-1]]
    )


def _is_target(step: StepRecord) -> bool:
    return step.outcome is not Outcome.INVALID_ACTION
