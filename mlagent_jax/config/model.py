"""What the model is and where it lives: shape, mesh, tokenizer."""

import dataclasses
from typing import Literal

from mlagent_jax.config.checks import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a Qwen-2.5 model; names follow Hugging Face's config.json.

    Attributes:
      vocab_size: V; rows of the embedding table (may exceed the tokenizer's).
      hidden_size: D.
      intermediate_size: F.
      num_layers: L.
      num_heads: N query heads.
      num_kv_heads: K key/value heads; divides num_heads.
      head_dim: H; even.
      rope_theta: base of the rotary position embedding.
      rms_norm_eps: added to the mean square.
      tie_word_embeddings: True if the output layer is the embedding table.
      max_position_embeddings: longest sequence the model was made for.
      compute_dtype: dtype of activations; weights are kept in float32.
      remat: what the backward pass recomputes: "none"; "layer": everything but the
        input of each layer; "attention": the same but for the attention kernel,
        whose output is kept too; "offload": as "layer", with the inputs kept in
        the host's memory.
      attention: implementation, see model/attention.py; "auto" goes by backend.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 32_768
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: Literal["none", "layer", "attention", "offload"] = "none"
    attention: Literal["auto", "blocked", "xla", "splash", "cudnn"] = "auto"

    def __post_init__(self) -> None:
        for name in [
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "max_position_embeddings",
        ]:
            value = getattr(self, name)
            check(value >= 1, f"model.{name}", value, "a positive integer")
        check(
            self.num_heads % self.num_kv_heads == 0,
            "model.num_kv_heads",
            self.num_kv_heads,
            f"a divisor of num_heads = {self.num_heads}",
        )
        check(self.head_dim % 2 == 0, "model.head_dim", self.head_dim, "even")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; -1 (at most once) takes what is left.

    Attributes:
      data: replicas of the parameters.
      fsdp: shards of parameters and optimizer state; the batch is split too.
      tensor: shards of heads, MLP width and vocabulary.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = (self.data, self.fsdp, self.tensor)
        is_ok = all(s == -1 or s >= 1 for s in sizes) and sizes.count(-1) <= 1
        check(is_ok, "mesh", sizes, "positive sizes, at most one -1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Where text becomes tokens.

    Attributes:
      path: Hugging Face folder or SentencePiece `.model`; None trains a byte-level
        BPE of Qwen2's kind on the collected trajectories (`<workdir>/tokenizer`).
      vocab_size: size of the trained vocabulary, special tokens included.
    """

    path: str | None = None
    vocab_size: int = 768

    def __post_init__(self) -> None:
        check(self.vocab_size >= 300, "tokenizer.vocab_size", self.vocab_size, ">= 300")
