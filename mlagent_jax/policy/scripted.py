"""The offline expert: turns ideas into real edits of real scripts (paper A.3).

It stands in for the paper's language-model expert where there is no network. It
reads what such a model would read (the ideas and the history in the prompt, plus
the current script) and answers in the same syntax. It knows moves, not which of
them are good: it tries them, usually takes back what failed or made the score
worse, and goes on. Every choice follows from the prompt and the request's seed, so
an interrupted run makes the same choices again.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence

from mlagent_jax.errors import TaskError
from mlagent_jax.policy.base import Reply, Request
from mlagent_jax.policy.moves import Move, apply_move, find_moves, is_made
from mlagent_jax.text.profiles import DIRECT, Profile
from mlagent_jax.text.prompt_reading import PromptStep
from mlagent_jax.text.wording import action_gist
from mlagent_jax.types import Action, ActionKind

_NO_CHANGE = ("undo", "submit", "list", "no action", "read ", "run ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Habits:
    """How the scripted expert behaves; all are probabilities in [0, 1] or counts.

    Attributes:
      undo_worse: of taking back a change that made the score worse.
      undo_failed: of taking back a change whose script failed.
      look: of an action that changes nothing (read, list, run).
      new_dimension: of choosing a free move, if there is one, in a dimension where
        no move is in place yet, rather than replacing what was done there.
      submit: of ending after each free move once the ideas are used up.
      min_free_moves: moves before it ends when the prompt holds no idea.
      max_thought_chars: a longer phrase is not said before the action.
    """

    undo_worse: float = 0.7
    undo_failed: float = 0.9
    look: float = 0.04
    new_dimension: float = 0.75
    submit: float = 0.4
    min_free_moves: int = 3
    max_thought_chars: int = 48


class ScriptedPolicy:
    """Answers requests at the next poll, from the moves of the request's task.

    Args:
      moves: task id -> what the expert can do there.
      name: of the policy in tables and records.
      habits: how it behaves.
      profile: the action profile of the prompts it reads and the replies it writes.
    """

    def __init__(
        self,
        moves: Mapping[str, Sequence[Move]],
        *,
        name: str = "expert",
        habits: Habits | None = None,
        profile: Profile = DIRECT,
    ) -> None:
        self.name = name
        self._profile = profile
        self._moves = {task_id: tuple(known) for task_id, known in moves.items()}
        self._habits = habits or Habits()
        self._waiting: list[Request] = []

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
          TaskError: the policy has no moves for the request's task.
        """
        if request.task_id not in self._moves:
            raise TaskError(
                f"task {request.task_id!r}: the scripted expert has no moves for it; "
                f"it has some for {sorted(self._moves)}. Add a moves.toml to the task "
                "or use another policy."
            )
        self._waiting.append(request)

    def poll(self) -> list[Reply]:
        """Answers everything that waits."""
        waiting, self._waiting = self._waiting, []
        return [
            Reply(request_id=request.id, text=self._reply(request), finish="stop")
            for request in waiting
        ]

    def num_pending(self) -> int:
        """Returns how many requests wait."""
        return len(self._waiting)

    def close(self) -> None:
        """Has nothing to release."""

    def _reply(self, request: Request) -> str:
        profile, moves = self._profile, self._moves[request.task_id]
        action = choose_action(
            moves,
            script=request.script,
            ideas=profile.read_ideas(request.messages),
            steps=profile.read_steps(request.messages),
            rng=random.Random(request.seed),
            habits=self._habits,
        )
        return profile.render_action(profile.express(action, moves[0].path))


def choose_action(
    moves: Sequence[Move],
    *,
    script: str,
    ideas: Sequence[str],
    steps: Sequence[PromptStep],
    rng: random.Random,
    habits: Habits,
) -> Action:
    """Returns the expert's next action.

    Args:
      moves: what can be done on this task.
      script: the entry script as it is now.
      ideas: idea texts to be tried first.
      steps: what was done before, oldest first.
      rng: decides between the possibilities.
      habits: how likely each of them is.
    """
    standing = _standing_verdict(steps)
    if standing == "worse" and rng.random() < habits.undo_worse:
        return Action(kind=ActionKind.UNDO)
    has_failed = standing not in {"", "same", "better", "worse"}
    if has_failed and rng.random() < habits.undo_failed:
        return Action(kind=ActionKind.UNDO)
    if rng.random() < habits.look:
        return rng.choice(
            [
                Action(kind=ActionKind.READ, path=moves[0].path),
                Action(kind=ActionKind.LIST),
                Action(kind=ActionKind.RUN, path=moves[0].path),
            ]
        )
    tried = {step.gist for step in steps}
    for idea in ideas:
        for move in find_moves(idea, moves):
            edit = _untried_edit(move, script, tried, habits)
            if edit is not None:
                return edit
    free = [(move, _untried_edit(move, script, tried, habits)) for move in moves]
    edits = {move: edit for move, edit in free if edit is not None}
    num_edits = sum(not step.gist.startswith(_NO_CHANGE) for step in steps)
    may_end = bool(ideas) or num_edits >= habits.min_free_moves
    if edits and not (may_end and rng.random() < habits.submit):
        return edits[_choose_move(tuple(edits), moves, script, rng, habits)]
    if has_failed or standing == "worse":
        return Action(kind=ActionKind.UNDO)
    return Action(kind=ActionKind.SUBMIT)


def _choose_move(
    candidates: Sequence[Move],
    moves: Sequence[Move],
    script: str,
    rng: random.Random,
    habits: Habits,
) -> Move:
    """Returns one of the candidates, mostly of a dimension without a move in place."""
    used = {move.dimension for move in moves if is_made(move, script)}
    new = [move for move in candidates if move.dimension not in used]
    is_new = bool(new) and rng.random() < habits.new_dimension
    return rng.choice(new if is_new else candidates)


def _untried_edit(
    move: Move, script: str, tried: set[str], habits: Habits
) -> Action | None:
    """Returns the edit of a move, None if it is made, impossible or was tried."""
    action = apply_move(move, script)
    if action is None or action_gist(action) in tried:
        return None
    thought = f"{move.say[:1].upper()}{move.say[1:]}."
    if len(thought) > habits.max_thought_chars:
        thought = ""
    return dataclasses.replace(action, thought=thought)


def _standing_verdict(steps: Sequence[PromptStep]) -> str:
    """Returns the verdict of the newest change that was not undone, "" if none."""
    changes: list[str] = []
    for step in steps:
        if step.gist == "undo" and step.verdict != "invalid":
            del changes[-1:]
        elif step.verdict != "invalid" and not step.gist.startswith(_NO_CHANGE):
            changes.append(step.verdict)
    return changes[-1] if changes else ""
