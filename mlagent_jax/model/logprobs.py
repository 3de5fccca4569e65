"""Log-probabilities and entropies of given tokens, without a (B, T, V) array.

`token_logprobs` is the scoring function of PPO's policy and of its frozen reference,
`weighted_logprobs` that of fine-tuning; the sampler's own log-probabilities must equal
them.

Axes: B rows, T tokens, D model width.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mlagent_jax.errors import ConfigError
from mlagent_jax.model import qwen2
from mlagent_jax.model.likelihood import weighted_sum
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
    is_scored_BT = _is_scored(segment_ids_BT)
    return TokenLogprobs(
        logprobs_BT=jnp.where(is_scored_BT, logprobs_BT, 0.0),
        entropy_BT=jnp.where(is_scored_BT, entropy_BT, 0.0),
    )


def weighted_logprobs(
    graphdef: nnx.GraphDef[qwen2.Qwen2],
    params: qwen2.Params,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    segment_ids_BT: jax.Array,
    weights_BT: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns (sum of weight x log-probability, logprobs_BT as `token_logprobs`).

    The sum is differentiable in `params` and cheaper there than that of
    `token_logprobs`; the log-probabilities beside it are not.

    Args:
      graphdef: from `qwen2.make_graphdef`.
      params: weights of the model.
      tokens_BT: token ids.
      positions_BT: position of each token in its own sequence.
      segment_ids_BT: 0 marks padding.
      weights_BT: of each token; those of tokens without a score count as 0.
    """
    hidden_BTD = qwen2.forward(
        graphdef, params, tokens_BT, positions_BT, segment_ids_BT=segment_ids_BT
    )
    is_scored_BT = _is_scored(segment_ids_BT)
    weights_BT = jnp.where(is_scored_BT, weights_BT, 0.0)
    # What a position predicts stands one column to its right.
    total, logprobs_BT = weighted_sum(
        hidden_BTD,
        qwen2.head_table(graphdef, params),
        jnp.roll(tokens_BT, -1, axis=1),
        jnp.roll(weights_BT, -1, axis=1),
    )
    return total, jnp.where(is_scored_BT, jnp.roll(logprobs_BT, 1, axis=1), 0.0)


def _is_scored(segment_ids_BT: jax.Array) -> jax.Array:
    """Returns bool_BT: whether an earlier token of the segment predicts this one."""
    previous_BT = jnp.roll(segment_ids_BT, 1, axis=1).at[:, 0].set(0)
    return (segment_ids_BT != 0) & (segment_ids_BT == previous_BT)
