"""Log-probabilities and entropies of given tokens, without a (B, T, V) array.

This is the scoring function of SFT, of PPO's policy and of its frozen reference;
the sampler's own log-probabilities must equal it.

Axes: B rows, T tokens, D model width.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mlagent_jax.errors import ConfigError
from mlagent_jax.model import qwen2
from mlagent_jax.model.scores import score_hidden


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLogprobs:
    """Scores of a batch of tokens, float32.

    Attributes:
      logprobs_BT: natural logarithm of each token's probability given the earlier
        ones of its segment; 0.0 for the first token of a segment and for padding.
      entropy_BT: entropy in nats of the distribution each token was drawn from;
        0.0 likewise.
    """

    logprobs_BT: jax.Array
    entropy_BT: jax.Array


def token_logprobs(
    graphdef: nnx.GraphDef[qwen2.Qwen2],
    params: qwen2.Params,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    segment_ids_BT: jax.Array,
    *,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> TokenLogprobs:
    """Returns what the model thinks of `tokens_BT`; differentiable in `params`.

    Args:
      graphdef: from `qwen2.make_graphdef`.
      params: weights.
      tokens_BT: token ids.
      positions_BT: position of each token in its own sequence.
      segment_ids_BT: 0 marks padding.
      temperature: logits are divided by it; > 0.
      chunk_size: positions of every row whose logits exist at once, see
        `scores.score_hidden`. They are recomputed in the backward pass.

    Raises:
      ConfigError: `temperature` is not positive.
    """
    if temperature <= 0:
        raise ConfigError(f"temperature = {temperature}: scoring needs one > 0")
    hidden_BTD = qwen2.forward(
        graphdef, params, tokens_BT, positions_BT, segment_ids_BT=segment_ids_BT
    )
    return hidden_logprobs(
        graphdef,
        params,
        hidden_BTD,
        tokens_BT,
        segment_ids_BT,
        temperature=temperature,
        chunk_size=chunk_size,
    )


def hidden_logprobs(
    graphdef: nnx.GraphDef[qwen2.Qwen2],
    params: qwen2.Params,
    hidden_BTD: jax.Array,
    tokens_BT: jax.Array,
    segment_ids_BT: jax.Array,
    *,
    temperature: float,
    chunk_size: int | None = None,
) -> TokenLogprobs:
    """Returns `token_logprobs` from hidden states that `qwen2.forward` gave."""
    # The last position predicts nothing; its result is rolled into column 0.
    scores = score_hidden(
        hidden_BTD,
        qwen2.head_table(graphdef, params),
        jnp.roll(tokens_BT, -1, axis=1),
        temperature=temperature,
        chunk_size=chunk_size,
    )
    logprobs_BT, entropy_BT = (jnp.roll(score_BT, 1, axis=1) for score_BT in scores)
    previous_BT = jnp.roll(segment_ids_BT, 1, axis=1).at[:, 0].set(0)
    is_scored_BT = (segment_ids_BT != 0) & (segment_ids_BT == previous_BT)
    return TokenLogprobs(
        logprobs_BT=jnp.where(is_scored_BT, logprobs_BT, 0.0),
        entropy_BT=jnp.where(is_scored_BT, entropy_BT, 0.0),
    )
