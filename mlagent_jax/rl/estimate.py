"""The estimators of advantages behind one interface, and the numbers of a rollout.

`make_estimator` gives GAE, group-relative or leave-one-out advantages by one
signature; `make_estimate_fn` puts token rewards before it and weights behind it. The
rows of a rollout are in the order states, samples of a state, steps of an episode
(one in mode "step"), so groups and episodes are plain reshapes.

Axis letters: B rows, T tokens, G states, N samples of a state.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from mlagent_jax.config import PpoConfig
from mlagent_jax.rl import advantages as adv
from mlagent_jax.rl import losses
from mlagent_jax.rl.batch import PpoBatch, RolloutBatch, Scores

Metrics = dict[str, Array]
# (token rewards, values, mask of chosen tokens) -> advantages, returns; all BT
Estimator = Callable[[Array, Array, Array], tuple[Array, Array]]
# (batch, scores, weight of the KL penalty) -> batch of the update, metrics
EstimateFn = Callable[[RolloutBatch, Scores, Array], tuple[PpoBatch, Metrics]]


def make_estimator(cfg: PpoConfig) -> Estimator:
    """Returns the estimator that `cfg.estimator` names.

    Returns of the group estimators are the scores that they compare: there is no
    critic to train on them.
    """

    def gae(rewards_BT: Array, values_BT: Array, mask_BT: Array) -> tuple[Array, Array]:
        # The rows of an episode become one long row: tokens that the policy did not
        # choose take no time, so credit flows from each reply to the one before it.
        rows = (-1, cfg.rows_per_sample * mask_BT.shape[1])
        advantages, returns = adv.generalized_advantages(
            rewards_BT.reshape(rows),
            values_BT.reshape(rows),
            mask_BT.reshape(rows),
            gamma=cfg.gamma,
            gae_lambda=cfg.gae_lambda,
        )
        return advantages.reshape(mask_BT.shape), returns.reshape(mask_BT.shape)

    def by_group(
        rewards_BT: Array, values_BT: Array, mask_BT: Array
    ) -> tuple[Array, Array]:
        del values_BT
        samples = (-1, cfg.samples_per_state, cfg.rows_per_sample * mask_BT.shape[1])
        scores_GN = rewards_BT.reshape(samples).sum(axis=-1)
        is_kept_GN = jnp.where(mask_BT.reshape(samples).any(axis=-1), 1.0, 0.0)
        if cfg.estimator == "rloo":
            advantages_GN = adv.leave_one_out(scores_GN, is_kept_GN)
        else:
            advantages_GN = adv.group_relative(
                scores_GN, is_kept_GN, divide_by_std=cfg.group_std
            )

        def spread(x_GN: Array) -> Array:
            """Gives every chosen token the number of its sample."""
            x_B = jnp.repeat(x_GN.reshape(-1), cfg.rows_per_sample)
            return adv.keep_masked(x_B[:, None], mask_BT)

        return spread(advantages_GN), spread(scores_GN)

    return gae if cfg.estimator == "gae" else by_group


def make_estimate_fn(cfg: PpoConfig) -> EstimateFn:
    """Returns a jitted function that makes an update's batch of a rollout.

    Advantages and their whitening span the rollout, so this comes before it is cut
    into minibatches. Importance and duration weights multiply the advantages last;
    being positive, they weigh the clipped surrogate of each token.

    Args:
      cfg: estimator, KL penalty, gamma, lambda, whitening, weights.
    """
    estimator = make_estimator(cfg)

    def estimate(
        batch: RolloutBatch, scores: Scores, kl_coef: Array
    ) -> tuple[PpoBatch, Metrics]:
        mask_BT = batch.response_mask_BT
        kl_BT = adv.kl_terms(
            scores.old_logprobs_BT,
            scores.ref_logprobs_BT,
            mask_BT,
            estimator=cfg.kl.estimator,
        )
        rewards_BT = adv.token_rewards(
            batch.rewards_B,
            kl_BT,
            mask_BT,
            kl_coef=kl_coef if cfg.kl.place == "reward" else 0.0,
        )
        advantages_BT, returns_BT = estimator(rewards_BT, scores.values_BT, mask_BT)
        metrics = _rollout_metrics(batch, scores, kl_BT, advantages_BT, returns_BT)
        if cfg.whiten_advantages and cfg.estimator == "gae":
            advantages_BT = adv.whiten(advantages_BT, mask_BT)
        weights_BT, weight_metrics = _weights(cfg, batch, scores)
        ppo_batch = PpoBatch(
            **{f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)},
            **{k: adv.keep_masked(v, mask_BT) for k, v in scores._asdict().items()},
            advantages_BT=advantages_BT * weights_BT,
            returns_BT=returns_BT,
        )
        return ppo_batch, metrics | weight_metrics

    return jax.jit(estimate)


def _weights(
    cfg: PpoConfig, batch: RolloutBatch, scores: Scores
) -> tuple[Array, Metrics]:
    """Returns what multiplies the advantages, 1.0 if nothing is switched on."""
    mask_BT = batch.response_mask_BT
    weights_BT = mask_BT
    metrics: Metrics = {}
    if cfg.importance_cap is not None:
        importance_BT = adv.importance_weights(
            scores.old_logprobs_BT,
            batch.behavior_logprobs_BT,
            mask_BT,
            cap=cfg.importance_cap,
        )
        is_capped_BT = jnp.where(importance_BT >= cfg.importance_cap, 1.0, 0.0)
        weights_BT = weights_BT * importance_BT
        metrics |= {
            "importance_mean": _mean(importance_BT, mask_BT),
            "importance_capped_frac": _mean(is_capped_BT, mask_BT),
        }
    if cfg.duration_aware:
        is_kept_B = jnp.where(mask_BT.any(axis=1), 1.0, 0.0)
        durations_B = adv.duration_weights(batch.durations_B, is_kept_B)
        weights_BT = weights_BT * durations_B[:, None]
        metrics["duration_weight_max"] = durations_B.max()
    return weights_BT, metrics


def _mean(x_BT: Array, mask_BT: Array) -> Array:
    return losses.masked_mean(x_BT, mask_BT, num_tokens=mask_BT.sum())


def _rollout_metrics(
    batch: RolloutBatch,
    scores: Scores,
    kl_BT: Array,
    advantages_BT: Array,
    returns_BT: Array,
) -> Metrics:
    mask_BT = batch.response_mask_BT
    mismatch_BT = adv.keep_masked(
        jnp.abs(scores.old_logprobs_BT - batch.behavior_logprobs_BT), mask_BT
    )
    return {
        "response_tokens": mask_BT.sum(),
        "logprob_mismatch": _mean(mismatch_BT, mask_BT),
        "logprob_mismatch_max": mismatch_BT.max(),
        "kl_to_reference": _mean(kl_BT, mask_BT),
        "advantage_std": jnp.sqrt(_mean(jnp.square(advantages_BT), mask_BT)),
        "value_mean": _mean(scores.values_BT, mask_BT),
        "return_mean": _mean(returns_BT, mask_BT),
        "explained_variance": losses.explained_variance(
            scores.values_BT, returns_BT, mask_BT
        ),
    }
