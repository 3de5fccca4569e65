"""What a training loop carries from one update to the next.

A registered dataclass of plain pytrees, so that it passes through `jax.jit`,
sharding rules and checkpoints alike. Batches and keys are not part of it: both
follow from the step.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

Params = Any  # nested dict of float32 arrays, see model/qwen2.py


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Parameters and optimizer state after `step` updates.

    Attributes:
      step: int32 scalar, updates done so far.
      params: trained parameters, float32.
      opt_state: what optax keeps for them.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first update."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
    )


def apply_gradients(
    state: TrainState, grads: Params, optimizer: optax.GradientTransformation
) -> TrainState:
    """Returns the state one update later; pure.

    Args:
      state: before the update.
      grads: gradient of the loss, shaped like `state.params`.
      optimizer: the one that made `state.opt_state`.
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
    )
