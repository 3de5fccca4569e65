"""From step rewards to advantages: token rewards, GAE and whitening on arrays.

Arrays in, arrays out: no parameters, no config, nothing but jax. One row is one
sample, a state's prompt and the reply to it. Everything happens on the tokens
that the policy chose, marked by `mask_BT` (1.0 there, else 0.0); other positions
hold 0.0 in every result, whatever (NaN included) they held in the arguments.

Axis letters: B samples, T token positions. An entry at t belongs to the choice
of token t: its log-probability given the tokens before it, and the value of the
state *before* it (see `batch.PpoBatch`).

Paper A.5: a step is one action, so an episode is one reply and the step reward
sits on its last token. The definitions are verl's (`core_algos.py`), the
trainer that the paper names.
"""

import jax
import jax.numpy as jnp
from jax import Array


def keep_masked(x_BT: Array, mask_BT: Array) -> Array:
    """Returns `x_BT` where the mask is 1 and 0.0 elsewhere, also in place of NaN."""
    return jnp.where(mask_BT > 0, x_BT, 0.0)


def last_response_token(mask_BT: Array) -> Array:
    """Returns 1.0 on the last chosen token of each row, 0.0 elsewhere.

    A row without chosen tokens (a dropped sample) gets none.
    """
    later_BT = jnp.cumsum(mask_BT[:, ::-1], axis=1)[:, ::-1] - mask_BT
    return jnp.where((mask_BT > 0) & (later_BT == 0), 1.0, 0.0)


def kl_estimate(logprobs_BT: Array, ref_logprobs_BT: Array, mask_BT: Array) -> Array:
    """Returns the per-token k1 estimate of the divergence from the reference.

    k1ₜ = log π(aₜ|sₜ) − log π_ref(aₜ|sₜ), whose mean over tokens of π is
    KL(π ‖ π_ref); single values may be negative (verl's `kl`).

    Args:
      logprobs_BT: of the policy that chose the tokens.
      ref_logprobs_BT: of the frozen reference on the same tokens.
      mask_BT: 1.0 on chosen tokens.
    """
    return keep_masked(logprobs_BT - ref_logprobs_BT, mask_BT)


def token_rewards(
    rewards_B: Array, kl_BT: Array, mask_BT: Array, *, kl_coef: float
) -> Array:
    """Returns the reward of each token choice.

    rₜ = R·[t is the last chosen token] − β·k1ₜ

    Args:
      rewards_B: step reward R(s, a) of each row, any finite number. It is a
        fraction as a rule, so it must be of floating type.
      kl_BT: `kl_estimate`.
      mask_BT: 1.0 on chosen tokens.
      kl_coef: β, the weight of the penalty, >= 0.
    """
    assert jnp.issubdtype(rewards_B.dtype, jnp.floating), rewards_B.dtype
    step_rewards_BT = rewards_B[:, None] * last_response_token(mask_BT)
    return keep_masked(step_rewards_BT - kl_coef * kl_BT, mask_BT)


def generalized_advantages(
    rewards_BT: Array,
    values_BT: Array,
    mask_BT: Array,
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Array, Array]:
    """Returns generalized advantage estimates and the critic's targets.

    δₜ = rₜ + γ·V(sₜ₊) − V(sₜ)        Aₜ = δₜ + γλ·Aₜ₊        Rₜ = Aₜ + V(sₜ)

    where t+ is the next *chosen* token of the row; after the last one the episode
    is over, V = A = 0. Positions that the policy did not choose take no time: a
    row may hold several replies with feedback between them. Arithmetic is float32.
    https://arxiv.org/abs/1506.02438 eq. 16; with γ = λ = 1 (verl's defaults)
    Rₜ is the sum of the rewards from t on.

    Args:
      rewards_BT: `token_rewards`.
      values_BT: value of the state before each token.
      mask_BT: 1.0 on chosen tokens.
      gamma: γ, discount from one chosen token to the next, in [0, 1].
      gae_lambda: λ, in [0, 1].

    Returns:
      advantages_BT and returns_BT, both 0.0 off the mask.
    """
    rewards_BT = keep_masked(rewards_BT.astype(jnp.float32), mask_BT)
    values_BT = keep_masked(values_BT.astype(jnp.float32), mask_BT)

    def step_back(next_B: tuple[Array, Array], token_B: tuple[Array, Array, Array]):
        next_value_B, next_advantage_B = next_B
        reward_B, value_B, mask_B = token_B
        delta_B = reward_B + gamma * next_value_B - value_B
        advantage_B = delta_B + gamma * gae_lambda * next_advantage_B
        is_chosen_B = mask_B > 0
        carry_B = (
            jnp.where(is_chosen_B, value_B, next_value_B),
            jnp.where(is_chosen_B, advantage_B, next_advantage_B),
        )
        return carry_B, advantage_B

    end_B = jnp.zeros(rewards_BT.shape[0], jnp.float32)
    _, advantages_TB = jax.lax.scan(
        step_back,
        (end_B, end_B),
        (rewards_BT.T, values_BT.T, mask_BT.T),
        reverse=True,
    )
    advantages_BT = keep_masked(advantages_TB.T, mask_BT)
    return advantages_BT, advantages_BT + values_BT


def whiten(x_BT: Array, mask_BT: Array, *, epsilon: float = 1e-8) -> Array:
    """Returns `x_BT` with zero mean and unit variance over the chosen tokens.

    x̂ = (x − μ) / √(σ² + ε), with σ² the unbiased variance (divisor n − 1), as in
    verl and TRL. Fewer than two tokens, or all alike, give zeros.

    Args:
      x_BT: for PPO the advantages of a whole rollout.
      mask_BT: 1.0 on chosen tokens.
      epsilon: keeps the division finite.
    """
    num_tokens = mask_BT.sum()
    mean = keep_masked(x_BT, mask_BT).sum() / jnp.maximum(num_tokens, 1.0)
    centred_BT = keep_masked(x_BT - mean, mask_BT)
    variance = jnp.square(centred_BT).sum() / jnp.maximum(num_tokens - 1.0, 1.0)
    return centred_BT * jax.lax.rsqrt(variance + epsilon)
