"""What PPO asks of the models: scores of a rollout, and losses of a micro-batch.

A `Loss` names the parameter trees that it trains; which losses a run has follows from
its config (`make_losses`): actor and critic apart, both at once where the value head
stands on the policy, or the actor alone where the estimator needs no values.

Axis letters: A micro-batches, B samples, T tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mlagent_jax.config import PpoConfig
from mlagent_jax.model import qwen2
from mlagent_jax.model.critic import head_values, values
from mlagent_jax.model.logprobs import hidden_logprobs, token_logprobs
from mlagent_jax.rl import losses
from mlagent_jax.rl.advantages import kl_terms
from mlagent_jax.rl.batch import PpoBatch, RolloutBatch, Scores
from mlagent_jax.train.state import Params

Metrics = dict[str, Array]
# actor, reference and critic parameters, rollout -> scores
ScoreFn = Callable[[Params, Params, Params, RolloutBatch], Scores]


class Loss(NamedTuple):
    """One loss and the trees ("actor", "critic") that it trains.

    Attributes:
      trains: names of those trees.
      fn: (name -> parameters, micro-batch, chosen tokens of the minibatch, weight of
        the KL penalty) -> loss, metrics.
    """

    trains: tuple[str, ...]
    fn: Callable[[dict[str, Params], PpoBatch, Array, Array], tuple[Array, Metrics]]


def make_score_fn(graphdef: Any, cfg: PpoConfig, *, temperature: float) -> ScoreFn:
    """Returns a function (actor, reference, critic parameters, batch) -> `Scores`.

    The old log-probabilities are computed here rather than taken from the sampler,
    whose kernels and dtype differ; the ratio then starts at 1. Without KL
    penalty the reference is neither read nor run and may be None; without a critic
    that one.

    Args:
      graphdef: of the model.
      cfg: micro-batch size, value model, and whether there is a KL penalty.
      temperature: of the sampler, > 0; the policy is the distribution it draws from.
    """
    score = score_rows(graphdef, cfg, temperature)

    def score_all(
        actor_params: Params,
        ref_params: Params,
        critic_params: Params,
        batch: RolloutBatch,
    ) -> Scores:
        micro_batches = split_micro_batches(batch, cfg.micro_batch_size)
        scores = jax.lax.map(
            lambda micro: score(actor_params, ref_params, critic_params, micro),
            micro_batches,
        )
        return _join_micro_batches(scores)

    return jax.jit(score_all)


def score_rows(graphdef: Any, cfg: PpoConfig, temperature: float) -> ScoreFn:
    """Returns the function that scores all rows of a batch at once; not jitted."""

    def score(
        actor_params: Params,
        ref_params: Params,
        critic_params: Params,
        batch: RolloutBatch,
    ) -> Scores:
        if cfg.has_critic and cfg.value_model == "shared":
            params = {"actor": actor_params, "critic": critic_params}
            old_logprobs_BT, _, values_BT = _score_shared(
                graphdef, params, batch, temperature
            )
        else:
            old_logprobs_BT = _score(graphdef, actor_params, batch, temperature)[0]
            values_BT = jnp.zeros_like(old_logprobs_BT)
            if cfg.has_critic:
                values_BT = _values_before(graphdef, critic_params, batch)
        ref_logprobs_BT = old_logprobs_BT
        if cfg.kl_coef > 0:
            ref_logprobs_BT = _score(graphdef, ref_params, batch, temperature)[0]
        return Scores(
            old_logprobs_BT=old_logprobs_BT,
            ref_logprobs_BT=ref_logprobs_BT,
            values_BT=values_BT,
        )

    return score


def make_losses(
    graphdef: Any, cfg: PpoConfig, temperature: float, *, is_warmup: bool
) -> tuple[Loss, ...]:
    """Returns the losses of an update; in the critic's warm-up only its own.

    Args:
      graphdef: of the model.
      cfg: clip ranges, weights, estimator, value model.
      temperature: as for `make_score_fn`.
      is_warmup: leaves the actor (and a trunk that is the actor's) as it is.
    """
    is_shared = cfg.value_model == "shared"

    def actor_loss(
        params: dict[str, Params], batch: PpoBatch, num_tokens: Array, kl_coef: Array
    ) -> tuple[Array, Metrics]:
        logprobs_BT, entropy_BT = _score(graphdef, params["actor"], batch, temperature)
        return policy_loss(cfg, logprobs_BT, entropy_BT, batch, num_tokens, kl_coef)

    def critic_loss(
        params: dict[str, Params], batch: PpoBatch, num_tokens: Array, kl_coef: Array
    ) -> tuple[Array, Metrics]:
        del kl_coef
        if is_shared:
            values_BT = _score_shared(graphdef, params, batch, temperature)[2]
        else:
            values_BT = _values_before(graphdef, params["critic"], batch)
        return value_loss(cfg, values_BT, batch, num_tokens)

    def joint_loss(
        params: dict[str, Params], batch: PpoBatch, num_tokens: Array, kl_coef: Array
    ) -> tuple[Array, Metrics]:
        logprobs_BT, entropy_BT, values_BT = _score_shared(
            graphdef, params, batch, temperature
        )
        actor, metrics = policy_loss(
            cfg, logprobs_BT, entropy_BT, batch, num_tokens, kl_coef
        )
        critic, more = value_loss(cfg, values_BT, batch, num_tokens)
        return actor + critic, metrics | more

    if not cfg.has_critic:
        return (Loss(("actor",), actor_loss),)
    if is_warmup:
        return (Loss(("critic",), critic_loss),)
    if is_shared:
        return (Loss(("actor", "critic"), joint_loss),)
    return (Loss(("critic",), critic_loss), Loss(("actor",), actor_loss))


def policy_loss(
    cfg: PpoConfig,
    new_logprobs_BT: Array,
    entropy_BT: Array,
    batch: PpoBatch,
    num_tokens: Array,
    kl_coef: Array,
) -> tuple[Array, Metrics]:
    """Returns the actor's loss and its metrics.

    L = clipped surrogate − c_H·H [+ β·mean k(log π − log π_ref)]

    Args:
      cfg: clip range, entropy weight, where the KL penalty acts.
      new_logprobs_BT: of the policy that is being trained.
      entropy_BT: of the distribution each token was drawn from.
      batch: rollout with advantages.
      num_tokens: chosen tokens of the whole minibatch.
      kl_coef: β.
    """
    mask_BT = batch.response_mask_BT
    log_ratio_BT = losses.log_ratio(new_logprobs_BT, batch.old_logprobs_BT, mask_BT)
    ratio_BT = jnp.exp(log_ratio_BT)
    surrogate = losses.clipped_surrogate(
        ratio_BT,
        batch.advantages_BT,
        mask_BT,
        clip_eps=cfg.clip_eps,
        num_tokens=num_tokens,
    )
    entropy = losses.masked_mean(entropy_BT, mask_BT, num_tokens=num_tokens)
    metrics = {
        "policy_loss": surrogate,
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
    loss = surrogate - cfg.entropy_coef * entropy
    if cfg.kl_coef > 0 and cfg.kl.place == "loss":
        kl_BT = kl_terms(
            new_logprobs_BT,
            batch.ref_logprobs_BT,
            mask_BT,
            estimator=cfg.kl.estimator,
        )
        kl_loss = losses.masked_mean(kl_BT, mask_BT, num_tokens=num_tokens)
        loss, metrics["kl_loss"] = loss + kl_coef * kl_loss, kl_loss
    return loss, metrics


def value_loss(
    cfg: PpoConfig, values_BT: Array, batch: PpoBatch, num_tokens: Array
) -> tuple[Array, Metrics]:
    """Returns the critic's weighted loss and its metrics."""
    loss = losses.clipped_value_loss(
        values_BT,
        batch.values_BT,
        batch.returns_BT,
        batch.response_mask_BT,
        value_clip=cfg.value_clip,
        num_tokens=num_tokens,
    )
    return cfg.value_coef * loss, {"value_loss": loss}


def split_micro_batches(batch: Any, micro_batch_size: int) -> Any:
    """Returns every (B, ...) array of `batch` as (A, micro_batch_size, ...).

    Micro-batch a has the rows a, a + A, ...: dealing rows out like cards keeps every
    micro-batch spread over all devices.
    """

    def split(x: Array) -> Array:
        return x.reshape(micro_batch_size, -1, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, batch)


def _join_micro_batches(batch: Any) -> Any:
    """Undoes `split_micro_batches`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), batch)


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


def _score_shared(
    graphdef: Any, params: dict[str, Params], batch: RolloutBatch, temperature: float
) -> tuple[Array, Array, Array]:
    """Returns log-probabilities, entropies and values of one forward pass."""
    hidden_BTD = qwen2.forward(
        graphdef,
        params["actor"],
        batch.tokens_BT,
        batch.positions_BT,
        segment_ids_BT=batch.segment_ids_BT,
    )
    scored = hidden_logprobs(
        graphdef,
        params["actor"],
        hidden_BTD,
        batch.tokens_BT,
        batch.segment_ids_BT,
        temperature=temperature,
    )
    values_BT = _one_later(head_values(params["critic"], hidden_BTD))
    return scored.logprobs_BT, scored.entropy_BT, values_BT


def _values_before(graphdef: Any, critic_params: Params, batch: RolloutBatch) -> Array:
    """Returns the value of the state before each token."""
    values_BT = values(
        graphdef,
        critic_params,
        batch.tokens_BT,
        batch.positions_BT,
        batch.segment_ids_BT,
    )
    return _one_later(values_BT)


def _one_later(values_BT: Array) -> Array:
    """Moves values from the token that was read last to the one chosen next.

    The critic's output at t has read token t; the choice of token t was made one
    position earlier. Nothing precedes the first token: 0.0.
    """
    return jnp.pad(values_BT[:, :-1], ((0, 0), (1, 0)))
