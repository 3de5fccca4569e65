"""Exploration: where ideas come from, how the most diverse are found, what is kept."""

import dataclasses
from typing import Literal

from mlagent_jax.config.agent import PolicyConfig
from mlagent_jax.config.checks import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdeasConfig:
    """The idea pool of a task and the selection from it (paper A.3).

    Attributes:
      source: "offline" composes ideas from the task's moves.toml; "api" asks a
        language model for them.
      endpoint: for "api": the model that writes ideas.
      ideas_a_request: for "api": ideas asked for at once.
      max_requests: for "api": requests a task before too small a pool is an error.
      embedding: what makes vectors of ideas: "tfidf" (words, no download), "api"
        (`embedding_endpoint`) or "local" (hidden states of the model in `init`).
      embedding_endpoint: for "api": a model behind /embeddings.
      selection: "farthest": each idea the farthest from those chosen before;
        "paper_v1": those with the largest mean distance to the pool; "paper_v2":
        farthest points over several axes of meaning.
    """

    source: Literal["offline", "api"] = "offline"
    endpoint: PolicyConfig = PolicyConfig()
    ideas_a_request: int = 25
    max_requests: int = 20
    embedding: Literal["tfidf", "api", "local"] = "tfidf"
    embedding_endpoint: PolicyConfig = PolicyConfig()
    selection: Literal["farthest", "paper_v1", "paper_v2"] = "farthest"

    def __post_init__(self) -> None:
        for name in ("ideas_a_request", "max_requests"):
            check(
                getattr(self, name) >= 1, f"ideas.{name}", getattr(self, name), ">= 1"
            )
        for uses, name in (
            (self.source == "api", "endpoint"),
            (self.embedding == "api", "embedding_endpoint"),
        ):
            kind = getattr(self, name).kind
            check(
                not uses or kind == "api", f"ideas.{name}.kind", kind, '"api" when used'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepConfig:
    """Which expert trajectories are trained on; the others go to rejected.jsonl.

    Attributes:
      max_invalid_frac: largest part of steps whose reply was no valid action.
      only_improving: the last score must be better than the starter's.
      unique: no other trajectory of the task may have taken the same actions.
    """

    max_invalid_frac: float = 1.0
    only_improving: bool = False
    unique: bool = False

    def __post_init__(self) -> None:
        is_ok = 0 <= self.max_invalid_frac <= 1
        check(is_ok, "keep.max_invalid_frac", self.max_invalid_frac, "in [0, 1]")
