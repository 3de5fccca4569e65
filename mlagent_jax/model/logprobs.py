"""Log-probabilities and entropies of given tokens, without a (B, T, V) array.

This is the scoring function of SFT, of PPO's policy and of its frozen reference;
the sampler's own log-probabilities must equal it.

Axes: B rows, T tokens, D model width, V vocabulary, C chunks of tokens, U tokens a
chunk.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mlagent_jax.errors import ConfigError
from mlagent_jax.model import qwen2


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
    chunk_size: int = 128,
) -> TokenLogprobs:
    """Returns what the model thinks of `tokens_BT`; differentiable in `params`.

    Args:
      graphdef: from `qwen2.make_graphdef`.
      params: weights.
      tokens_BT: token ids.
      positions_BT: position of each token in its own sequence.
      segment_ids_BT: 0 marks padding.
      temperature: logits are divided by it; > 0.
      chunk_size: positions of every row whose logits exist at once. They are
        recomputed in the backward pass.

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
    chunk_size: int = 128,
) -> TokenLogprobs:
    """Returns `token_logprobs` from hidden states that `qwen2.forward` gave."""

    @jax.checkpoint
    def score_chunk(
        hidden_BUD: jax.Array, next_BU: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        logits_BUV = qwen2.unembed(graphdef, params, hidden_BUD) / temperature
        return score_logits(logits_BUV, next_BU)

    # The last position predicts nothing; its result is rolled into column 0.
    chunks = (
        _split_chunks(hidden_BTD, chunk_size),
        _split_chunks(jnp.roll(tokens_BT, -1, axis=1), chunk_size),
    )
    scores = jax.lax.map(lambda chunk: score_chunk(*chunk), chunks)
    T = tokens_BT.shape[1]
    logprobs_BT, entropy_BT = (
        jnp.roll(_join_chunks(score_CBU, T), 1, axis=1) for score_CBU in scores
    )
    previous_BT = jnp.roll(segment_ids_BT, 1, axis=1).at[:, 0].set(0)
    is_scored_BT = (segment_ids_BT != 0) & (segment_ids_BT == previous_BT)
    return TokenLogprobs(
        logprobs_BT=jnp.where(is_scored_BT, logprobs_BT, 0.0),
        entropy_BT=jnp.where(is_scored_BT, entropy_BT, 0.0),
    )


def score_logits(
    logits_BTV: jax.Array, tokens_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns (logprobs_BT, entropy_BT) of tokens under float32 logits."""
    log_sum_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    # A masked sum instead of a gather: its gradient is no scatter, and a
    # vocabulary that is split over devices stays split.
    is_token_BTV = jnp.arange(logits_BTV.shape[-1]) == tokens_BT[..., None]
    chosen_BT = jnp.sum(jnp.where(is_token_BTV, logits_BTV, 0.0), axis=-1)
    probs_BTV = jnp.exp(logits_BTV - log_sum_BT[..., None])
    entropy_BT = log_sum_BT - jnp.sum(probs_BTV * logits_BTV, axis=-1)
    return chosen_BT - log_sum_BT, entropy_BT


def _split_chunks(x_BT: jax.Array, chunk_size: int) -> jax.Array:
    """Returns x[C, B, U, ...]: the token axis cut in chunks, the last one padded."""
    B, T = x_BT.shape[:2]
    num_chunks = -(-T // chunk_size)
    U = -(-T // num_chunks)
    pad = [(0, 0), (0, num_chunks * U - T)] + [(0, 0)] * (x_BT.ndim - 2)
    chunked = jnp.pad(x_BT, pad).reshape(B, num_chunks, U, *x_BT.shape[2:])
    return jnp.moveaxis(chunked, 1, 0)


def _join_chunks(x_CBU: jax.Array, num_tokens: int) -> jax.Array:
    B = x_CBU.shape[1]
    return jnp.moveaxis(x_CBU, 0, 1).reshape(B, -1)[:, :num_tokens]
