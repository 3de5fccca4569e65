"""How one token is drawn from logits, and the log-probability it had.

Greedy, temperature, top-k and top-p are one frozen dataclass, so that a method can
be a static argument. What is switched off is not computed.

Tokens are drawn by inverting the cumulative distribution at one uniform number a
row. That needs one random number instead of V (Gumbel's trick; 5 times slower at
V = 768 on a CPU).

Axes: B rows, V vocabulary, C candidate tokens of a row, most likely first.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mlagent_jax.config import SampleConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingMethod:
    """A distribution over the next token, made from logits.

    The order is Hugging Face's: temperature, then top-k, then top-p on what top-k
    left.

    Attributes:
      temperature: logits are divided by it; 0.0 takes the most likely token.
      top_k: keep the k most likely tokens; 0 keeps all.
      top_p: keep the fewest tokens, most likely first, whose mass reaches this;
        1.0 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @classmethod
    def from_config(cls, cfg: SampleConfig) -> "SamplingMethod":
        """Returns the method that a run configures."""
        return cls(temperature=cfg.temperature, top_k=cfg.top_k, top_p=cfg.top_p)

    def sample(
        self, logits_BV: jax.Array, keys_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (tokens_B int32, logprobs_B float32).

        The log-probability is that under the distribution drawn from: temperature
        applied, renormalised over the tokens that top-k and top-p keep. Without
        truncation it equals `model.logprobs` at the same temperature. Greedy
        decoding draws from a point mass, whose log-probability (0) says nothing;
        it reports the model's own, at temperature 1.

        Args:
          logits_BV: float32.
          keys_B: a random key for each row; not used by greedy decoding.
        """
        if self.temperature == 0.0:
            tokens_B = _first_greatest(logits_BV)
            return tokens_B, _pick_logprobs(logits_BV, tokens_B)
        scaled_BV = logits_BV / self.temperature
        V = logits_BV.shape[-1]
        is_truncated = 0 < self.top_k < V or self.top_p < 1.0
        if not is_truncated:
            tokens_B = _draw(scaled_BV, keys_B)
            return tokens_B, _pick_logprobs(scaled_BV, tokens_B)
        num_candidates = self.top_k if 0 < self.top_k < V else V
        candidates_BC, ids_BC = jax.lax.top_k(scaled_BV, num_candidates)
        if self.top_p < 1.0:
            candidates_BC = _keep_mass(candidates_BC, self.top_p)
        picks_B = _draw(candidates_BC, keys_B)
        tokens_B = jnp.take_along_axis(ids_BC, picks_B[:, None], axis=-1)[:, 0]
        return tokens_B.astype(jnp.int32), _pick_logprobs(candidates_BC, picks_B)


def _first_greatest(logits_BV: jax.Array) -> jax.Array:
    """Returns int32 `argmax`; V - 1 for a row that is not all numbers.

    As two plain reductions: on CPU XLA takes four times as long for one of pairs.
    """
    V = logits_BV.shape[-1]
    is_greatest_BV = logits_BV == jnp.max(logits_BV, axis=-1, keepdims=True)
    places_V = jnp.arange(V, dtype=jnp.int32)
    return jnp.min(jnp.where(is_greatest_BV, places_V, V - 1), axis=-1)


def _keep_mass(candidates_BC: jax.Array, mass: float) -> jax.Array:
    """Returns descending logits with -inf where those before reach `mass`."""
    probs_BC = jax.nn.softmax(candidates_BC, axis=-1)
    before_BC = jnp.cumsum(probs_BC, axis=-1) - probs_BC
    is_kept_BC = (before_BC < mass).at[:, 0].set(True)
    return jnp.where(is_kept_BC, candidates_BC, -jnp.inf)


def _draw(logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
    """Returns one index a row, drawn from softmax(logits)."""
    weights_BV = jnp.exp(logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True))
    cumulative_BV = jnp.cumsum(weights_BV, axis=-1)
    uniform_B = jax.vmap(lambda key: jax.random.uniform(key))(keys_B)
    target_B1 = uniform_B[:, None] * cumulative_BV[:, -1:]
    # Rounding may lift the target to the total, which no entry exceeds.
    below_B1 = jnp.nextafter(cumulative_BV[:, -1:], jnp.float32(0.0))
    target_B1 = jnp.minimum(target_B1, below_B1)
    # The first entry above the target: one of weight zero is never the first.
    return jnp.sum(cumulative_BV <= target_B1, axis=-1, dtype=jnp.int32)


def _pick_logprobs(logits_BV: jax.Array, picks_B: jax.Array) -> jax.Array:
    picked_B = jnp.take_along_axis(logits_BV, picks_B[:, None], axis=-1)[:, 0]
    return picked_B - jax.nn.logsumexp(logits_BV, axis=-1)
