"""What a model must compute for a batch of tokens: the numerator of MFU.

Two FLOPs a multiplication: 2 x parameters of every product a token passes, plus the
attention products, of which a causal model needs the half below the diagonal. The
backward pass needs twice the forward's. Nothing that is computed again counts.

Axes: T tokens of a sequence.
"""

from mlagent_jax.config import ModelConfig


def forward_flops(
    cfg: ModelConfig, *, num_rows: int, seq_len: int, has_head: bool = True
) -> float:
    """Returns FLOPs of one forward pass over whole sequences.

    Args:
      cfg: the model.
      num_rows: sequences.
      seq_len: T, tokens of each.
      has_head: False leaves out the output layer (a critic's is nothing).
    """
    tokens = num_rows * seq_len
    attention = 2.0 * cfg.num_heads * cfg.head_dim * seq_len
    layer = 2.0 * layer_weights(cfg) + attention
    head = 2.0 * cfg.hidden_size * cfg.vocab_size if has_head else 0.0
    return tokens * (cfg.num_layers * layer + head)


def train_flops(
    cfg: ModelConfig, *, num_rows: int, seq_len: int, has_head: bool = True
) -> float:
    """Returns FLOPs of forward and backward pass; arguments as `forward_flops`."""
    return 3.0 * forward_flops(
        cfg, num_rows=num_rows, seq_len=seq_len, has_head=has_head
    )


def decode_flops(cfg: ModelConfig, *, num_rows: int, context: int) -> float:
    """Returns FLOPs of one new token in every row.

    Args:
      cfg: the model.
      num_rows: rows that are decoded together.
      context: tokens that each of them attends to.
    """
    attention = 4.0 * cfg.num_heads * cfg.head_dim * context
    layer = 2.0 * layer_weights(cfg) + attention
    head = 2.0 * cfg.hidden_size * cfg.vocab_size
    return num_rows * (cfg.num_layers * layer + head)


def layer_weights(cfg: ModelConfig) -> int:
    """Returns the weights of one layer that take part in products."""
    heads = 2 * (cfg.num_heads + cfg.num_kv_heads) * cfg.head_dim
    return cfg.hidden_size * (heads + 3 * cfg.intermediate_size)
