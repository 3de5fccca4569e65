"""Greedy tree search over a policy, as AIDE does it (the paper's Figure 3).

Nodes are states. While there are fewer drafts than wanted, the search starts again
from the starter; then it mends a solution that failed, or improves the best that
works. Each expansion is one step of the policy, so a search of 15 steps costs what a
trajectory of 15 steps does. The best node by selection score is what counts.
"""

import dataclasses
import random
from collections.abc import Mapping
from typing import Literal

from mlagent_jax.config import EnvConfig
from mlagent_jax.config.evaluation import SearchConfig
from mlagent_jax.env.advance import advance
from mlagent_jax.env.environment import Start
from mlagent_jax.env.runner import Attempt, MakeAttempt, TrajectorySpec
from mlagent_jax.types import ActionKind, Outcome, State, StepRecord, StepStatus, Task


@dataclasses.dataclass(kw_only=True)
class _Node:
    """A place to go on from.

    Attributes:
      state: where the next action would start.
      kind: a "draft" has not changed anything yet; then it is "good" or "bad".
      num_failures: failed changes in a row that led here.
      has_child: whether a change was tried from here.
      is_closed: the policy has declared this solution finished.
    """

    state: State
    kind: Literal["draft", "good", "bad"]
    num_failures: int = 0
    has_child: bool = False
    is_closed: bool = False


class TreeSearch(Attempt):
    """One search under way; the steps of its trajectory are in order of time.

    Args:
      spec: task, seed and number of steps.
      start: fresh workspace.
      policy: name for the record.
      env: limit of time.
      search: how to search.
      sign: +1.0 if a higher score is better, else -1.0.
    """

    def __init__(
        self,
        spec: TrajectorySpec,
        start: Start,
        policy: str,
        env: EnvConfig,
        *,
        search: SearchConfig,
        sign: float,
    ) -> None:
        super().__init__(spec, start, policy, env)
        self._search = search
        self._sign = sign
        self._root = start.state
        self._rng = random.Random(spec.seed)
        self._nodes: list[_Node] = []
        self._num_drafts = 0
        self._node: _Node | None = None

    def next_state(self) -> State:
        """Returns the state of the node to expand: draft, debug or improve."""
        self._node = self._choose()
        return self._node.state

    def grow(self, record: StepRecord) -> None:
        """Adds the node that a change led to, or what the policy learned."""
        node = self._node
        assert node is not None
        if record.status is StepStatus.SUBMITTED:
            node.is_closed = True
        elif record.is_edit:
            node.has_child = True
            is_good = record.outcome is Outcome.SCORED
            self._nodes.append(
                _Node(
                    state=advance(node.state, record),
                    kind="good" if is_good else "bad",
                    num_failures=0 if is_good else node.num_failures + 1,
                )
            )
            if node.kind == "draft":
                self._nodes.remove(node)
        elif not _is_undo(record):
            # Where to go back to is for the search to decide; what was read stays.
            node.state = advance(node.state, record)

    def ends(self, record: StepRecord) -> StepStatus:
        """Returns SUBMITTED once every branch is finished or given up."""
        has_work = (
            self._num_drafts < self._search.num_drafts
            or any(not n.is_closed and n.kind != "bad" for n in self._nodes)
            or bool(self._mendable())
        )
        if record.status is StepStatus.SUBMITTED and has_work:
            return StepStatus.ONGOING
        return record.status

    def _choose(self) -> _Node:
        drafts = [n for n in self._nodes if n.kind == "draft" and not n.is_closed]
        if drafts:
            return drafts[0]
        if self._num_drafts < self._search.num_drafts:
            return self._draft()
        broken = self._mendable()
        if broken and self._rng.random() < self._search.debug_prob:
            return self._rng.choice(broken)
        good = [n for n in self._nodes if n.kind == "good" and not n.is_closed]
        if good:
            return max(good, key=lambda n: self._sign * n.state.score)
        return self._rng.choice(broken) if broken else self._draft()

    def _draft(self) -> _Node:
        node = _Node(state=self._root, kind="draft")
        self._nodes.append(node)
        self._num_drafts += 1
        return node

    def _mendable(self) -> list[_Node]:
        """Returns the failed leaves that have not failed too often in a row."""
        return [
            n
            for n in self._nodes
            if n.kind == "bad"
            and not n.has_child
            and not n.is_closed
            and n.num_failures <= self._search.max_debug_depth
        ]


def make_search(search: SearchConfig, tasks: Mapping[str, Task]) -> MakeAttempt:
    """Returns the factory of searches that `run_trajectories` takes."""

    def make(
        spec: TrajectorySpec, start: Start, policy: str, env: EnvConfig
    ) -> TreeSearch:
        sign = tasks[spec.task_id].sign
        return TreeSearch(spec, start, policy, env, search=search, sign=sign)

    return make


def _is_undo(record: StepRecord) -> bool:
    return record.action is not None and record.action.kind is ActionKind.UNDO
