"""The state of PPO and its update: one jitted pure function a minibatch.

Actor, critic and reference are parameter trees over one graph definition; the
critic is a whole second model with a value head (paper A.5, as verl does it), a head
on the policy, or absent (`objective`). The function that scores a rollout is in
`objective`, the one that estimates advantages in `estimate`; `learner` calls all
three in that order.

Axis letters: A micro-batches that accumulate one gradient, B samples, T tokens.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mlagent_jax.config import ModelConfig, PpoConfig
from mlagent_jax.model.critic import init_critic, init_value_head
from mlagent_jax.rl.batch import PpoBatch
from mlagent_jax.rl.objective import Loss, make_losses, split_micro_batches
from mlagent_jax.train.optimizer import make_optimizer
from mlagent_jax.train.state import Params, TrainState, apply_gradients, init_state

Metrics = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoState:
    """What PPO carries from one update to the next.

    Attributes:
      actor: the policy and its optimizer.
      critic: the value model (or head) and its optimizer; None without one.
      kl_coef: float32 weight of the KL penalty in the next rollout.
    """

    actor: TrainState
    critic: TrainState | None
    kl_coef: Array


class PpoOptimizers(NamedTuple):
    """The optimizers of the two models."""

    actor: optax.GradientTransformation
    critic: optax.GradientTransformation


PpoStep = Callable[[PpoState, PpoBatch], tuple[PpoState, Metrics]]


def make_optimizers(cfg: PpoConfig) -> PpoOptimizers:
    """Returns the optimizers, their schedules spanning the whole run.

    The actor's starts when the critic's warm-up is over.
    """
    steps_per_update = cfg.num_epochs * (cfg.rows_per_update // cfg.minibatch_size)
    num_actor_updates = max(cfg.num_updates - cfg.critic_warmup_updates, 1)
    return PpoOptimizers(
        actor=make_optimizer(cfg.actor, num_actor_updates * steps_per_update),
        critic=make_optimizer(cfg.critic, cfg.num_updates * steps_per_update),
    )


def init_values(
    cfg: PpoConfig, model_cfg: ModelConfig, policy_params: Params, key: Array
) -> Params | None:
    """Returns the critic's parameters before the first update.

    A whole second model, the head alone where it stands on the policy's hidden states,
    or None where the estimator needs no values.
    """
    if not cfg.has_critic:
        return None
    if cfg.value_model == "shared":
        return init_value_head(model_cfg, key)
    return init_critic(model_cfg, policy_params, key)


def init_ppo_state(
    policy_params: Params,
    critic_params: Params | None,
    optimizers: PpoOptimizers,
    *,
    kl_coef: float = 0.0,
) -> PpoState:
    """Returns the state before the first update; it owns a copy of the policy.

    Updates consume their state, and the policy lives on as the reference.
    """
    policy_params = jax.tree.map(jnp.copy, policy_params)
    critic = None
    if critic_params is not None:
        critic = init_state(critic_params, optimizers.critic)
    return PpoState(
        actor=init_state(policy_params, optimizers.actor),
        critic=critic,
        kl_coef=jnp.float32(kl_coef),
    )


def make_ppo_step(
    graphdef: Any,
    cfg: PpoConfig,
    optimizers: PpoOptimizers,
    *,
    temperature: float,
    is_warmup: bool = False,
    state_shardings: Any = None,
) -> PpoStep:
    """Returns a function (state, minibatch) -> (state, metrics); state is donated.

    The loss is a mean over the chosen tokens of the whole minibatch, whatever its
    division into micro-batches.

    Args:
      graphdef: of the model.
      cfg: clip ranges, weights, micro-batch size.
      optimizers: made the state's optimizer states.
      temperature: as for `objective.make_score_fn`.
      is_warmup: True trains the critic alone and returns the actor as it is.
      state_shardings: where the state lives; None leaves it to the compiler.
    """
    losses = make_losses(graphdef, cfg, temperature, is_warmup=is_warmup)

    def step(state: PpoState, batch: PpoBatch) -> tuple[PpoState, Metrics]:
        num_tokens = batch.response_mask_BT.sum()
        micro_batches = split_micro_batches(batch, cfg.micro_batch_size)
        params = trees(state)
        metrics: Metrics = {}
        for loss in losses:
            grads, part = _accumulate(
                loss, params, micro_batches, num_tokens, state.kl_coef
            )
            state, norms = apply_named(state, grads, optimizers)
            metrics |= part | norms
        return state, metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, None))


def trees(state: PpoState) -> dict[str, Params]:
    """Returns name -> parameters of the models that there are."""
    found = {"actor": state.actor.params}
    if state.critic is not None:
        found["critic"] = state.critic.params
    return found


def apply_named(
    state: PpoState, grads: dict[str, Params], optimizers: PpoOptimizers
) -> tuple[PpoState, Metrics]:
    """Returns the state with the named models updated, and their gradient norms."""
    metrics: Metrics = {}
    for name, tree in grads.items():
        metrics[f"{name}_grad_norm"] = optax.tree.norm(tree)
        model = apply_gradients(getattr(state, name), tree, getattr(optimizers, name))
        state = dataclasses.replace(state, **{name: model})
    return state, metrics


def loss_gradient(
    loss: Loss,
    params: dict[str, Params],
    micro: PpoBatch,
    num_tokens: Array,
    kl_coef: Array,
) -> tuple[dict[str, Params], Metrics]:
    """Returns the gradient for the trees that `loss` trains, and its metrics."""

    def of_trained(trained: dict[str, Params]) -> tuple[Array, Metrics]:
        return loss.fn(params | trained, micro, num_tokens, kl_coef)

    trained = {name: params[name] for name in loss.trains}
    return jax.grad(of_trained, has_aux=True)(trained)


def _accumulate(
    loss: Loss,
    params: dict[str, Params],
    micro_batches: PpoBatch,
    num_tokens: Array,
    kl_coef: Array,
) -> tuple[dict[str, Params], Metrics]:
    """Returns the sums of gradients and metrics over the micro-batches."""

    def add(
        total: dict[str, Params], micro: PpoBatch
    ) -> tuple[dict[str, Params], Metrics]:
        grads, metrics = loss_gradient(loss, params, micro, num_tokens, kl_coef)
        return jax.tree.map(jnp.add, total, grads), metrics

    zeros = jax.tree.map(jnp.zeros_like, {name: params[name] for name in loss.trains})
    grads, metrics_A = jax.lax.scan(add, zeros, micro_batches)
    return grads, jax.tree.map(lambda x_A: x_A.sum(axis=0), metrics_A)
