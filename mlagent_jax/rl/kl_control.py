"""The adaptive weight of the KL penalty: a controller with one number as its state."""

import jax.numpy as jnp
from jax import Array

_MAX_ERROR = 0.2


def adapt_kl_coef(
    kl_coef: Array, kl: Array, *, target: float, horizon: float, num_samples: int
) -> Array:
    """Returns the weight for the next rollout.

    β' = β·(1 + clip(kl/target − 1, −0.2, 0.2)·n/horizon)

    https://arxiv.org/abs/1909.08593 section 2.2, as in verl and TRL.

    Args:
      kl_coef: β, weight of the rollout that was just measured.
      kl: its mean divergence a token.
      target: divergence to steer at.
      horizon: samples over which a lasting error changes the weight by its size.
      num_samples: n, samples of the rollout.
    """
    error = jnp.clip(kl / target - 1.0, -_MAX_ERROR, _MAX_ERROR)
    return kl_coef * (1.0 + error * num_samples / horizon)
