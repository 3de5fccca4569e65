"""From step rewards to advantages: token rewards, estimators and weights on arrays.

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

from typing import Literal

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


def kl_terms(
    logprobs_BT: Array,
    ref_logprobs_BT: Array,
    mask_BT: Array,
    *,
    estimator: Literal["k1", "k2", "k3"],
) -> Array:
    """Returns a per-token estimate of the divergence from the reference.

    With dₜ = log π(aₜ|sₜ) − log π_ref(aₜ|sₜ):

        k1 = d        k2 = d²/2        k3 = e⁻ᵈ − 1 + d

    The mean of k1 and of k3 over tokens of π is KL(π ‖ π_ref); single values of k1
    may be negative, those of k2 (biased) and k3 never are. (verl's `kl`, `mse` and
    `low_var_kl`, without its clip of the result.)
    http://joschu.net/blog/kl-approx.html. As a term of a loss, only k2 has the
    gradient of KL(π ‖ π_ref) in the mean; that of k1 is zero.

    Args:
      logprobs_BT: of the policy that chose the tokens.
      ref_logprobs_BT: of the frozen reference on the same tokens.
      mask_BT: 1.0 on chosen tokens.
      estimator: "k1", "k2" or "k3".
    """
    d_BT = keep_masked(logprobs_BT, mask_BT) - keep_masked(ref_logprobs_BT, mask_BT)
    match estimator:
        case "k1":
            return d_BT
        case "k2":
            return 0.5 * jnp.square(d_BT)
        case "k3":
            # exp(20) is far outside of any sensible divergence, and finite.
            return jnp.expm1(-jnp.clip(d_BT, -20.0, 20.0)) + d_BT


def token_rewards(
    rewards_B: Array, kl_BT: Array, mask_BT: Array, *, kl_coef: float | Array
) -> Array:
    """Returns the reward of each token choice.

    rₜ = R·[t is the last chosen token] − β·kₜ

    Args:
      rewards_B: step reward R(s, a) of each row, any finite number. It is a
        fraction as a rule, so it must be of floating type.
      kl_BT: `kl_terms`.
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


def group_relative(
    scores_GN: Array, mask_GN: Array, *, divide_by_std: bool, epsilon: float = 1e-6
) -> Array:
    """Returns how much better each sample is than its group (GRPO).

    Aᵢ = (Rᵢ − mean R) / (std R + ε), with the unbiased standard deviation; without
    `divide_by_std` the numerator alone (Dr. GRPO). https://arxiv.org/abs/2402.03300
    eq. 4, https://arxiv.org/abs/2503.20783. A sample that is alone has nothing to be
    compared with: 0.0.

    Axes: G groups (states), N samples of a group.

    Args:
      scores_GN: reward of each sample.
      mask_GN: 1.0 on samples that count, 0.0 on dropped ones.
      divide_by_std: whether groups of much and of little spread weigh alike.
      epsilon: keeps the division finite.
    """
    scores_GN = keep_masked(scores_GN, mask_GN)
    num_G1 = mask_GN.sum(axis=1, keepdims=True)
    mean_G1 = scores_GN.sum(axis=1, keepdims=True) / jnp.maximum(num_G1, 1.0)
    centred_GN = keep_masked(scores_GN - mean_G1, mask_GN)
    if not divide_by_std:
        return centred_GN
    squares_G1 = jnp.square(centred_GN).sum(axis=1, keepdims=True)
    std_G1 = jnp.sqrt(squares_G1 / jnp.maximum(num_G1 - 1.0, 1.0))
    return centred_GN / (std_G1 + epsilon)


def leave_one_out(scores_GN: Array, mask_GN: Array) -> Array:
    """Returns the reward of each sample minus the mean of the others (RLOO).

    Aᵢ = Rᵢ − Σ_{j≠i} Rⱼ / (n − 1); https://arxiv.org/abs/2402.14740. Equal to
    n/(n − 1) times `group_relative` without division. A sample that is alone: 0.0.

    Args:
      scores_GN: reward of each sample.
      mask_GN: 1.0 on samples that count, 0.0 on dropped ones.
    """
    scores_GN = keep_masked(scores_GN, mask_GN)
    num_others_G1 = mask_GN.sum(axis=1, keepdims=True) - 1.0
    others_GN = scores_GN.sum(axis=1, keepdims=True) - scores_GN
    baseline_GN = others_GN / jnp.maximum(num_others_G1, 1.0)
    is_compared_GN = mask_GN * (num_others_G1 > 0)
    return keep_masked(scores_GN - baseline_GN, is_compared_GN)


def importance_weights(
    old_logprobs_BT: Array, behavior_logprobs_BT: Array, mask_BT: Array, *, cap: float
) -> Array:
    """Returns min(π_old/π_behaviour, cap) of each chosen token.

    The truncated weights of IMPALA and of decoupled PPO
    (https://arxiv.org/abs/2110.00641): tokens were drawn from the behaviour policy,
    the surrogate is built around the old one.

    Args:
      old_logprobs_BT: of the policy that is about to be updated.
      behavior_logprobs_BT: of the policy that chose the tokens.
      mask_BT: 1.0 on chosen tokens.
      cap: bound, > 0; 1.0 never raises a token's weight.
    """
    d_BT = keep_masked(old_logprobs_BT - behavior_logprobs_BT, mask_BT)
    weights_BT = jnp.minimum(jnp.exp(jnp.clip(d_BT, -20.0, 20.0)), cap)
    return keep_masked(weights_BT, mask_BT)


def duration_weights(durations_B: Array, is_kept_B: Array) -> Array:
    """Returns each kept sample's duration over the mean of all kept ones.

    wᵢ = Δtᵢ / mean Δt, the duration-aware gradient of
    https://arxiv.org/abs/2509.01684: an asynchronous learner sees fast actions more
    often in the same time, which this undoes. Their mean is 1.

    Args:
      durations_B: seconds, >= 0.
      is_kept_B: 1.0 on samples that count, else 0.0.
    """
    durations_B = keep_masked(durations_B, is_kept_B)
    mean = durations_B.sum() / jnp.maximum(is_kept_B.sum(), 1.0)
    return jnp.where(mean > 0, durations_B / jnp.maximum(mean, 1e-9), is_kept_B)


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
