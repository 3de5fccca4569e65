"""Evaluation."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation (paper A.8).

    Attributes:
      trajectories_per_task: k; average and best over them (paper: 8).
      max_steps: steps of one trajectory.
      policies: names to evaluate: "starter", "expert", "sft", "ppo", or "hf:<path>".
      final: which submission counts: the "last" valid one (paper) or the one with
        the best "selection" score.
      fresh_states: states per held-in task for comparing mean step rewards.
      samples_per_state: replies per such state and policy.
      num_in_flight: trajectories that run side by side.
    """

    trajectories_per_task: int = 8
    max_steps: int = 15
    policies: tuple[str, ...] = ("starter", "expert", "sft", "ppo")
    final: Literal["last", "selection"] = "last"
    fresh_states: int = 24
    samples_per_state: int = 4
    num_in_flight: int = 32
