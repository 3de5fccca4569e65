"""The published sizes of Qwen-2.5: facts of each model's config.json.

    model = qwen2_5("7B", remat="layer")

The table is for runs whose weights are not at hand (ahead-of-time compilation, random
weights); a run that starts from a folder reads its config.json instead. Base and
instruct models of one size have the same arrays. The numbers here are the instruct
models'; some base models state 131,072 positions, and those from 14B on a norm
epsilon of 1e-5.
"""

import dataclasses
from typing import Any, Literal, get_args

from mlagent_jax.config.checks import check
from mlagent_jax.config.model import ModelConfig

Size = Literal["0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B"]


@dataclasses.dataclass(frozen=True)
class _Facts:
    """One row of the table: D, F, L, N, K, V, and whether the embedding is tied.

    Everywhere alike: head width D / N, rotary base 1,000,000, norm epsilon 1e-6 and
    32,768 positions, which are the defaults of `ModelConfig`.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    tie_word_embeddings: bool


_FACTS: dict[Size, _Facts] = {
    "0.5B": _Facts(896, 4_864, 24, 14, 2, 151_936, True),
    "1.5B": _Facts(1_536, 8_960, 28, 12, 2, 151_936, True),
    "3B": _Facts(2_048, 11_008, 36, 16, 2, 151_936, True),
    "7B": _Facts(3_584, 18_944, 28, 28, 4, 152_064, False),
    "14B": _Facts(5_120, 13_824, 48, 40, 8, 152_064, False),
    "32B": _Facts(5_120, 27_648, 64, 40, 8, 152_064, False),
    "72B": _Facts(8_192, 29_568, 80, 64, 8, 152_064, False),
}


def qwen2_5(size: Size, **changes: Any) -> ModelConfig:
    """Returns the shape of the model of `size`.

    Args:
      size: "0.5B" to "72B".
      **changes: fields of `ModelConfig` that differ, such as `remat`.

    Raises:
      ConfigError: there is no such size, or a field is out of range.
    """
    check(size in _FACTS, "size", size, f"one of {', '.join(get_args(Size))}")
    facts = _FACTS[size]
    fields = dataclasses.asdict(facts)
    fields["head_dim"] = facts.hidden_size // facts.num_heads
    return ModelConfig(**(fields | changes))
