"""Evaluation."""

import dataclasses
from typing import Literal

from mlagent_jax.config.agent import PolicyConfig
from mlagent_jax.config.checks import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Greedy tree search over solutions, as AIDE does it: draft, improve, debug.

    Attributes:
      num_drafts: first attempts from the starter before anything is improved.
      debug_prob: chance of mending a solution that failed, if there is one, rather
        than improving the best that works.
      max_debug_depth: failures in a row after which a branch is given up.
    """

    num_drafts: int = 3
    debug_prob: float = 0.5
    max_debug_depth: int = 3

    def __post_init__(self) -> None:
        check(self.num_drafts >= 1, "search.num_drafts", self.num_drafts, ">= 1")
        is_ok = 0 <= self.debug_prob <= 1
        check(is_ok, "search.debug_prob", self.debug_prob, "in [0, 1]")
        is_ok = self.max_debug_depth >= 0
        check(is_ok, "search.max_debug_depth", self.max_debug_depth, ">= 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation (paper A.8).

    Attributes:
      trajectories_per_task: k; average and best over them (paper: 8).
      max_steps: steps of one trajectory, and of one tree search.
      policies: names to evaluate: "starter", "expert", "sft", "ppo", "hf:<folder>",
        "api:<model>" (of `endpoints`), or "tree:<one of these>" for a tree search
        over that policy with the same steps and time.
      endpoints: OpenAI-compatible endpoints to compare with, named by their model.
      search: settings of the tree search.
      final: which submission of a trajectory counts: the "last" valid one (paper) or
        the one with the best "selection" score; of a tree search always the latter.
      fresh_states: states per held-in task for comparing mean step rewards.
      samples_per_state: replies per such state and policy.
      num_in_flight: trajectories that run side by side.
    """

    trajectories_per_task: int = 8
    max_steps: int = 15
    policies: tuple[str, ...] = ("starter", "expert", "sft", "ppo")
    endpoints: tuple[PolicyConfig, ...] = ()
    search: SearchConfig = SearchConfig()
    final: Literal["last", "selection"] = "last"
    fresh_states: int = 24
    samples_per_state: int = 4
    num_in_flight: int = 32

    def __post_init__(self) -> None:
        k = self.trajectories_per_task
        check(k >= 1, "eval.trajectories_per_task", k, ">= 1")
        check(self.max_steps >= 1, "eval.max_steps", self.max_steps, ">= 1")
        models = [endpoint.model for endpoint in self.endpoints]
        is_ok = all(e.kind == "api" for e in self.endpoints) and "" not in models
        check(
            is_ok and len(models) == len(set(models)),
            "eval.endpoints",
            models,
            'policies of kind "api", each with another model',
        )
