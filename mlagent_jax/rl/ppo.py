"""The device side of step-wise PPO: score a rollout, estimate advantages, update.

Actor, critic and reference are parameter trees over one graph definition; the
critic is a whole second model with a value head (paper A.5, as verl does it).
`make_score_fn`, `make_estimate_fn` and `make_ppo_step` each return one jitted pure
function; `learner` calls them in that order.

Axis letters: A micro-batches that accumulate one gradient, B samples, T tokens.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mlagent_jax.config import PpoConfig
from mlagent_jax.model.critic import values
from mlagent_jax.model.logprobs import token_logprobs
from mlagent_jax.rl import advantages as advantages_lib
from mlagent_jax.rl import losses
from mlagent_jax.rl.batch import PpoBatch, RolloutBatch
from mlagent_jax.train.optimizer import make_optimizer
from mlagent_jax.train.state import Params, TrainState, apply_gradients, init_state

Metrics = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoState:
    """What PPO carries from one update to the next.

    Attributes:
      actor: the policy and its optimizer.
      critic: the value model and its optimizer.
    """

    actor: TrainState
    critic: TrainState


class PpoOptimizers(NamedTuple):
    """The optimizers of the two models."""

    actor: optax.GradientTransformation
    critic: optax.GradientTransformation


class Scores(NamedTuple):
    """What the trainer's models say about a rollout, see `PpoBatch`."""

    old_logprobs_BT: Array
    ref_logprobs_BT: Array
    values_BT: Array


ScoreFn = Callable[[Params, Params, Params, RolloutBatch], Scores]
EstimateFn = Callable[[RolloutBatch, Scores], tuple[PpoBatch, Metrics]]
PpoStep = Callable[[PpoState, PpoBatch], tuple[PpoState, Metrics]]
# (parameters, micro-batch, chosen tokens of the minibatch) -> loss, metrics
LossFn = Callable[[Params, PpoBatch, Array], tuple[Array, Metrics]]


def make_optimizers(cfg: PpoConfig) -> PpoOptimizers:
    """Returns the optimizers, their schedules spanning the whole run.

    The actor's starts when the critic's warm-up is over.
    """
    num_samples = cfg.states_per_update * cfg.samples_per_state
    steps_per_update = cfg.num_epochs * (num_samples // cfg.minibatch_size)
    num_actor_updates = max(cfg.num_updates - cfg.critic_warmup_updates, 1)
    return PpoOptimizers(
        actor=make_optimizer(cfg.actor, num_actor_updates * steps_per_update),
        critic=make_optimizer(cfg.critic, cfg.num_updates * steps_per_update),
    )


def init_ppo_state(
    policy_params: Params, critic_params: Params, optimizers: PpoOptimizers
) -> PpoState:
    """Returns the state before the first update; it owns a copy of the policy.

    Updates consume their state, and the policy lives on as the reference.
    """
    policy_params = jax.tree.map(jnp.copy, policy_params)
    return PpoState(
        actor=init_state(policy_params, optimizers.actor),
        critic=init_state(critic_params, optimizers.critic),
    )


def make_score_fn(graphdef: Any, cfg: PpoConfig, *, temperature: float) -> ScoreFn:
    """Returns a function (actor, reference, critic parameters, batch) -> `Scores`.

    The old log-probabilities are computed here rather than taken from the sampler,
    whose kernels and dtype differ; the ratio then starts at 1. Without KL
    penalty the reference is neither read nor run and may be None.

    Args:
      graphdef: of the model.
      cfg: micro-batch size and whether there is a KL penalty.
      temperature: of the sampler, > 0; the policy is the distribution it draws from.
    """

    def score(
        actor_params: Params,
        ref_params: Params,
        critic_params: Params,
        batch: RolloutBatch,
    ) -> Scores:
        def score_micro_batch(micro: RolloutBatch) -> Scores:
            old_logprobs_BT = _score(graphdef, actor_params, micro, temperature)[0]
            ref_logprobs_BT = old_logprobs_BT
            if cfg.kl_coef > 0:
                ref_logprobs_BT = _score(graphdef, ref_params, micro, temperature)[0]
            return Scores(
                old_logprobs_BT=old_logprobs_BT,
                ref_logprobs_BT=ref_logprobs_BT,
                values_BT=_values_before(graphdef, critic_params, micro),
            )

        micro_batches = _split_micro_batches(batch, cfg.micro_batch_size)
        return _join_micro_batches(jax.lax.map(score_micro_batch, micro_batches))

    return jax.jit(score)


def make_estimate_fn(cfg: PpoConfig) -> EstimateFn:
    """Returns a function (batch, scores) -> (`PpoBatch`, metrics of the rollout).

    Advantages and their whitening span the rollout, so this comes before it is cut
    into minibatches.

    Args:
      cfg: KL weight, gamma, lambda, whitening.
    """

    def estimate(batch: RolloutBatch, scores: Scores) -> tuple[PpoBatch, Metrics]:
        mask_BT = batch.response_mask_BT
        kl_BT = advantages_lib.kl_estimate(
            scores.old_logprobs_BT, scores.ref_logprobs_BT, mask_BT
        )
        rewards_BT = advantages_lib.token_rewards(
            batch.rewards_B, kl_BT, mask_BT, kl_coef=cfg.kl_coef
        )
        advantages_BT, returns_BT = advantages_lib.generalized_advantages(
            rewards_BT,
            scores.values_BT,
            mask_BT,
            gamma=cfg.gamma,
            gae_lambda=cfg.gae_lambda,
        )
        metrics = _rollout_metrics(batch, scores, kl_BT, advantages_BT, returns_BT)
        if cfg.whiten_advantages:
            advantages_BT = advantages_lib.whiten(advantages_BT, mask_BT)
        ppo_batch = PpoBatch(
            **{f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)},
            **{
                k: advantages_lib.keep_masked(v, mask_BT)
                for k, v in scores._asdict().items()
            },
            advantages_BT=advantages_BT,
            returns_BT=returns_BT,
        )
        return ppo_batch, metrics

    return jax.jit(estimate)


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
      temperature: as for `make_score_fn`.
      is_warmup: True trains the critic alone and returns the actor as it is.
      state_shardings: where the state lives; None leaves it to the compiler.
    """
    actor_loss = _make_actor_loss(graphdef, cfg, temperature)
    critic_loss = _make_critic_loss(graphdef, cfg)

    def step(state: PpoState, batch: PpoBatch) -> tuple[PpoState, Metrics]:
        num_tokens = batch.response_mask_BT.sum()
        micro_batches = _split_micro_batches(batch, cfg.micro_batch_size)
        grads, metrics = _accumulate(
            critic_loss, state.critic.params, micro_batches, num_tokens
        )
        metrics["critic_grad_norm"] = optax.tree.norm(grads)
        critic = apply_gradients(state.critic, grads, optimizers.critic)
        if is_warmup:
            return PpoState(actor=state.actor, critic=critic), metrics
        grads, actor_metrics = _accumulate(
            actor_loss, state.actor.params, micro_batches, num_tokens
        )
        metrics |= actor_metrics | {"actor_grad_norm": optax.tree.norm(grads)}
        actor = apply_gradients(state.actor, grads, optimizers.actor)
        return PpoState(actor=actor, critic=critic), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, None))


def _make_actor_loss(graphdef: Any, cfg: PpoConfig, temperature: float) -> LossFn:
    def actor_loss(
        params: Params, batch: PpoBatch, num_tokens: Array
    ) -> tuple[Array, Metrics]:
        mask_BT = batch.response_mask_BT
        new_logprobs_BT, entropy_BT = _score(graphdef, params, batch, temperature)
        log_ratio_BT = losses.log_ratio(new_logprobs_BT, batch.old_logprobs_BT, mask_BT)
        ratio_BT = jnp.exp(log_ratio_BT)
        policy_loss = losses.clipped_surrogate(
            ratio_BT,
            batch.advantages_BT,
            mask_BT,
            clip_eps=cfg.clip_eps,
            num_tokens=num_tokens,
        )
        entropy = losses.masked_mean(entropy_BT, mask_BT, num_tokens=num_tokens)
        metrics = {
            "policy_loss": policy_loss,
            "entropy": entropy,
            "approx_kl": losses.approximate_kl(
                log_ratio_BT, mask_BT, num_tokens=num_tokens
            ),
            "clip_frac": losses.clip_fraction(
                ratio_BT,
                batch.advantages_BT,
                mask_BT,
                clip_eps=cfg.clip_eps,
                num_tokens=num_tokens,
            ),
        }
        return policy_loss - cfg.entropy_coef * entropy, metrics

    return actor_loss


def _make_critic_loss(graphdef: Any, cfg: PpoConfig) -> LossFn:
    def critic_loss(
        params: Params, batch: PpoBatch, num_tokens: Array
    ) -> tuple[Array, Metrics]:
        value_loss = losses.clipped_value_loss(
            _values_before(graphdef, params, batch),
            batch.values_BT,
            batch.returns_BT,
            batch.response_mask_BT,
            value_clip=cfg.value_clip,
            num_tokens=num_tokens,
        )
        return cfg.value_coef * value_loss, {"value_loss": value_loss}

    return critic_loss


def _score(
    graphdef: Any, params: Params, batch: RolloutBatch, temperature: float
) -> tuple[Array, Array]:
    scored = token_logprobs(
        graphdef,
        params,
        batch.tokens_BT,
        batch.positions_BT,
        batch.segment_ids_BT,
        temperature=temperature,
    )
    return scored.logprobs_BT, scored.entropy_BT


def _values_before(graphdef: Any, critic_params: Params, batch: RolloutBatch) -> Array:
    """Returns the value of the state before each token.

    The critic's output at t has read token t; the choice of token t was made one
    position earlier. Nothing precedes the first token: 0.0.
    """
    values_BT = values(
        graphdef,
        critic_params,
        batch.tokens_BT,
        batch.positions_BT,
        batch.segment_ids_BT,
    )
    return jnp.pad(values_BT[:, :-1], ((0, 0), (1, 0)))


def _split_micro_batches(batch: Any, micro_batch_size: int) -> Any:
    """Returns every (B, ...) array of `batch` as (A, micro_batch_size, ...).

    Micro-batch a has the rows a, a + A, ...: dealing rows out like cards keeps every
    micro-batch spread over all devices.
    """

    def split(x: Array) -> Array:
        return x.reshape(micro_batch_size, -1, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, batch)


def _join_micro_batches(batch: Any) -> Any:
    """Undoes `_split_micro_batches`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), batch)


def _accumulate(
    loss_fn: LossFn,
    params: Params,
    micro_batches: PpoBatch,
    num_tokens: Array,
) -> tuple[Params, Metrics]:
    """Returns the sums of gradients and metrics over the micro-batches."""

    def add(total: Params, micro: PpoBatch) -> tuple[Params, Metrics]:
        grads, metrics = jax.grad(loss_fn, has_aux=True)(params, micro, num_tokens)
        return jax.tree.map(jnp.add, total, grads), metrics

    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, metrics_A = jax.lax.scan(add, zeros, micro_batches)
    return grads, jax.tree.map(lambda x_A: x_A.sum(axis=0), metrics_A)


def _rollout_metrics(
    batch: RolloutBatch,
    scores: Scores,
    kl_BT: Array,
    advantages_BT: Array,
    returns_BT: Array,
) -> Metrics:
    mask_BT = batch.response_mask_BT
    num_tokens = mask_BT.sum()
    mismatch_BT = advantages_lib.keep_masked(
        jnp.abs(scores.old_logprobs_BT - batch.behavior_logprobs_BT), mask_BT
    )

    def mean(x_BT: Array) -> Array:
        return losses.masked_mean(x_BT, mask_BT, num_tokens=num_tokens)

    return {
        "response_tokens": num_tokens,
        "logprob_mismatch": mean(mismatch_BT),
        "logprob_mismatch_max": mismatch_BT.max(),
        "kl_to_reference": mean(kl_BT),
        "advantage_std": jnp.sqrt(mean(jnp.square(advantages_BT))),
        "value_mean": mean(scores.values_BT),
        "return_mean": mean(returns_BT),
        "explained_variance": losses.explained_variance(
            scores.values_BT, returns_BT, mask_BT
        ),
    }
