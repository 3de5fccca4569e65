"""The terms of the PPO objective and its diagnostics, on arrays alone.

Arrays in, scalars out: no parameters, no config, nothing but jax. Every term is
a sum over the chosen tokens (`mask_BT`, 1.0 there) divided by `num_tokens`, an
argument: the caller passes the count of the whole minibatch, so that the sum of
the terms of its micro-batches is the term of the minibatch, exactly.

Axis letters: B samples, T token positions, aligned as in `advantages`.
Sources: PPO, https://arxiv.org/abs/1707.06347; where that leaves freedom, verl's
`core_algos.py` (token mean, clipped values, log-ratio bounded by 20). The sign is
that of a loss: lower is better.
"""

import jax.numpy as jnp
from jax import Array

# exp(20) is far outside any clip range and still a finite float32.
MAX_LOG_RATIO = 20.0


def masked_mean(x_BT: Array, mask_BT: Array, *, num_tokens: Array) -> Array:
    """Returns Σ x·mask / num_tokens; 0.0 if `num_tokens` is 0.

    Entries off the mask are left out even if they are not finite.
    """
    return _keep(x_BT, mask_BT).sum() / jnp.maximum(num_tokens, 1.0)


def log_ratio(new_logprobs_BT: Array, old_logprobs_BT: Array, mask_BT: Array) -> Array:
    """Returns log(π_new/π_old) on the chosen tokens, 0.0 elsewhere, within ±20."""
    difference_BT = _keep(new_logprobs_BT - old_logprobs_BT, mask_BT)
    return jnp.clip(difference_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def clipped_surrogate(
    ratio_BT: Array,
    advantages_BT: Array,
    mask_BT: Array,
    *,
    clip_eps: float,
    num_tokens: Array,
) -> Array:
    """Returns PPO's clipped policy loss.

    L = −Σₜ min(ρₜ·Aₜ, clip(ρₜ, 1−ε, 1+ε)·Aₜ) / n          (PPO, eq. 7)

    Args:
      ratio_BT: ρ = π_new/π_old = exp(`log_ratio`).
      advantages_BT: constants; no gradient should flow into them.
      mask_BT: 1.0 on chosen tokens.
      clip_eps: ε > 0.
      num_tokens: n, the chosen tokens of the whole minibatch.
    """
    ratio_BT = _keep(ratio_BT, mask_BT)
    advantages_BT = _keep(advantages_BT, mask_BT)
    clipped_BT = jnp.clip(ratio_BT, 1.0 - clip_eps, 1.0 + clip_eps)
    gain_BT = jnp.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
    return -masked_mean(gain_BT, mask_BT, num_tokens=num_tokens)


def clip_fraction(
    ratio_BT: Array,
    advantages_BT: Array,
    mask_BT: Array,
    *,
    clip_eps: float,
    num_tokens: Array,
) -> Array:
    """Returns the part of the chosen tokens whose gradient the clip removes.

    These are ρ > 1+ε with A > 0 and ρ < 1−ε with A < 0; a ratio outside the range
    on the other side of the advantage keeps its gradient and is not counted.
    """
    is_above_BT = (ratio_BT > 1.0 + clip_eps) & (advantages_BT > 0)
    is_below_BT = (ratio_BT < 1.0 - clip_eps) & (advantages_BT < 0)
    is_clipped_BT = jnp.where(is_above_BT | is_below_BT, 1.0, 0.0)
    return masked_mean(is_clipped_BT, mask_BT, num_tokens=num_tokens)


def approximate_kl(log_ratio_BT: Array, mask_BT: Array, *, num_tokens: Array) -> Array:
    """Returns an estimate of KL(π_old ‖ π_new) that is never negative (k3).

    k3 = Σₜ ((ρₜ − 1) − log ρₜ) / n; http://joschu.net/blog/kl-approx.html. How far
    the update has moved the policy from the one that is being improved.
    """
    log_ratio_BT = _keep(log_ratio_BT, mask_BT)
    k3_BT = jnp.expm1(log_ratio_BT) - log_ratio_BT
    return masked_mean(k3_BT, mask_BT, num_tokens=num_tokens)


def clipped_value_loss(
    new_values_BT: Array,
    old_values_BT: Array,
    returns_BT: Array,
    mask_BT: Array,
    *,
    value_clip: float | None,
    num_tokens: Array,
) -> Array:
    """Returns the critic's squared error, its step bounded by c if there is one.

    L = ½ Σₜ max((V−R)², (clip(V, V_old−c, V_old+c) − R)²) / n

    Args:
      new_values_BT: V, of the critic that is being trained.
      old_values_BT: V_old, of the critic before the update.
      returns_BT: R, its targets; constants.
      mask_BT: 1.0 on chosen tokens.
      value_clip: c > 0; None leaves the plain squared error.
      num_tokens: n, the chosen tokens of the whole minibatch.
    """
    new_values_BT = _keep(new_values_BT, mask_BT)
    old_values_BT = _keep(old_values_BT, mask_BT)
    returns_BT = _keep(returns_BT, mask_BT)
    error_BT = jnp.square(new_values_BT - returns_BT)
    if value_clip is not None:
        clipped_BT = jnp.clip(
            new_values_BT, old_values_BT - value_clip, old_values_BT + value_clip
        )
        error_BT = jnp.maximum(error_BT, jnp.square(clipped_BT - returns_BT))
    return 0.5 * masked_mean(error_BT, mask_BT, num_tokens=num_tokens)


def explained_variance(values_BT: Array, returns_BT: Array, mask_BT: Array) -> Array:
    """Returns 1 − Var(R − V)/Var(R) over the chosen tokens.

    1.0 is a perfect critic, 0.0 one as good as a constant; 0.0 also if all returns
    are alike.
    """
    num_tokens = mask_BT.sum()

    def variance(x_BT: Array) -> Array:
        mean = masked_mean(x_BT, mask_BT, num_tokens=num_tokens)
        return masked_mean(jnp.square(x_BT - mean), mask_BT, num_tokens=num_tokens)

    total = variance(returns_BT)
    left = variance(returns_BT - values_BT)
    return jnp.where(total > 1e-12, 1.0 - left / jnp.maximum(total, 1e-12), 0.0)


def _keep(x_BT: Array, mask_BT: Array) -> Array:
    """Returns 0.0 off the mask.

    Applied to arguments, before any arithmetic: a NaN that is only masked out of
    the result would still reach the gradient as 0 * NaN.
    """
    return jnp.where(mask_BT > 0, x_BT, 0.0)
