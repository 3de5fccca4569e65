"""Estimators, KL estimates and weights: hand cases, float64 loops, identities.

The formulas of other trainers (verl, TRL, OpenRLHF) are written down here anew, in
numpy, from their definitions.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.config import KlConfig, PpoConfig
from mlagent_jax.errors import ConfigError
from mlagent_jax.rl import advantages as adv
from mlagent_jax.rl import losses
from mlagent_jax.rl.batch import Scores, TokenSample, pad_samples
from mlagent_jax.rl.estimate import make_estimate_fn, make_estimator
from mlagent_jax.rl.kl_control import adapt_kl_coef

SEEDS = range(4)
G, N = 5, 4


def make_cfg(**changes):
    settings = {
        "states_per_update": 2,
        "samples_per_state": 2,
        "minibatch_size": 4,
        "micro_batch_size": 4,
        "kl_coef": 0.0,
        "whiten_advantages": False,
    }
    return PpoConfig(**(settings | changes))


def random_groups(seed):
    rng = np.random.default_rng(seed)
    scores = rng.uniform(size=(G, N))
    kept = (rng.uniform(size=(G, N)) > 0.3).astype(float)
    kept[0] = 0  # a group that was dropped
    kept[1] = [1, 0, 0, 0]  # a sample that is alone
    return scores, kept


@pytest.mark.parametrize("divide_by_std", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_group_relative_advantages_equal_a_float64_loop(seed, divide_by_std):
    scores, kept = random_groups(seed)
    expected = np.zeros((G, N))
    for g in range(G):
        group = scores[g][kept[g] > 0]
        for i in np.flatnonzero(kept[g]):
            if len(group) > 1:
                scale = group.std(ddof=1) + 1e-6 if divide_by_std else 1.0
                expected[g, i] = (scores[g, i] - group.mean()) / scale
    got = adv.group_relative(
        jnp.array(scores), jnp.array(kept), divide_by_std=divide_by_std
    )
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_leave_one_out_equals_a_float64_loop(seed):
    scores, kept = random_groups(seed)
    expected = np.zeros((G, N))
    for g in range(G):
        for i in np.flatnonzero(kept[g]):
            others = [scores[g, j] for j in np.flatnonzero(kept[g]) if j != i]
            expected[g, i] = scores[g, i] - np.mean(others) if others else 0.0
    got = adv.leave_one_out(jnp.array(scores), jnp.array(kept))
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_leave_one_out_is_the_mean_baseline_times_n_over_n_minus_1(seed):
    scores, kept = random_groups(seed)
    num = kept.sum(axis=1, keepdims=True)
    factor = np.where(num > 1, num / np.maximum(num - 1, 1), 0.0)
    mean_baseline = adv.group_relative(
        jnp.array(scores), jnp.array(kept), divide_by_std=False
    )
    np.testing.assert_allclose(
        adv.leave_one_out(jnp.array(scores), jnp.array(kept)),
        factor * mean_baseline,
        atol=1e-6,
    )


def test_a_group_of_equal_rewards_teaches_nothing():
    scores, kept = jnp.full((2, 3), 0.7), jnp.ones((2, 3))
    for divide_by_std in (True, False):
        got = adv.group_relative(scores, kept, divide_by_std=divide_by_std)
        np.testing.assert_allclose(got, 0.0, atol=0.1)  # 1e-8 of noise over 1e-6
    np.testing.assert_allclose(adv.leave_one_out(scores, kept), 0.0, atol=1e-6)


def test_kl_estimates_of_hand_computed_tokens():
    log2 = np.log(2.0)
    logprobs_BT = jnp.array([[-log2, -log2, -1.0, np.nan]])
    ref_BT = jnp.array([[-2 * log2, -log2, -1.0 + log2, 3.0]])
    mask_BT = jnp.array([[1.0, 1, 1, 0]])  # d = log 2, 0, -log 2
    expected = {
        "k1": [log2, 0, -log2, 0],
        "k2": [log2**2 / 2, 0, log2**2 / 2, 0],
        "k3": [0.5 - 1 + log2, 0, 2 - 1 - log2, 0],
    }
    for name, values in expected.items():
        got = adv.kl_terms(logprobs_BT, ref_BT, mask_BT, estimator=name)
        np.testing.assert_allclose(got, [values], atol=1e-6)


def test_k1_and_k3_average_to_the_divergence_and_k2_has_its_gradient():
    rng = np.random.default_rng(0)
    logits, ref_logits = rng.normal(size=(2, 6))
    ref = np.asarray(jax.nn.log_softmax(jnp.array(ref_logits)))

    def divergence(logits):
        logp = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(logp) * (logp - ref))

    probs_V = jax.nn.softmax(jnp.array(logits))

    def mean_term(logits, name):
        """Mean over tokens of the policy that drew them, a constant."""
        logp = jax.nn.log_softmax(logits)[None]
        terms = adv.kl_terms(
            logp, jnp.array(ref)[None], jnp.ones((1, 6)), estimator=name
        )
        return jnp.sum(probs_V * terms[0])

    logits = jnp.array(logits)
    expected, gradient = jax.value_and_grad(divergence)(logits)
    for name in ("k1", "k3"):
        np.testing.assert_allclose(mean_term(logits, name), expected, rtol=1e-5)
    grads = {name: jax.grad(mean_term)(logits, name) for name in ("k1", "k2", "k3")}
    np.testing.assert_allclose(grads["k2"], gradient, atol=1e-6)
    np.testing.assert_allclose(grads["k1"], 0.0, atol=1e-6)
    assert np.abs(np.asarray(grads["k3"]) - np.asarray(gradient)).max() > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_importance_weights_are_truncated_ratios(seed):
    rng = np.random.default_rng(seed)
    old, behavior = rng.normal(-2, 1, size=(2, 3, 7))
    mask = rng.integers(0, 2, size=(3, 7)).astype(float)
    expected = np.minimum(np.exp(old - behavior), 1.5) * mask
    got = adv.importance_weights(
        jnp.array(old), jnp.array(behavior), jnp.array(mask), cap=1.5
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    same = adv.importance_weights(
        jnp.array(old), jnp.array(old), jnp.array(mask), cap=1.5
    )
    np.testing.assert_array_equal(same, mask)


def test_untruncated_importance_weights_are_unbiased():
    # Gradient under the old policy = weighted gradient of samples of another one.
    rng = np.random.default_rng(1)
    old, behavior = jax.nn.log_softmax(jnp.array(rng.normal(size=(2, 1, 5))))
    rewards = jnp.array(rng.normal(size=(1, 5)))
    weights = adv.importance_weights(old, behavior, jnp.ones((1, 5)), cap=1e6)
    np.testing.assert_allclose(
        jnp.sum(jnp.exp(behavior) * weights * rewards),
        jnp.sum(jnp.exp(old) * rewards),
        rtol=1e-5,
    )


def test_duration_weights_average_to_one_over_kept_samples():
    got = adv.duration_weights(
        jnp.array([1.0, 99.0, 3.0, 2.0]), jnp.array([1.0, 0.0, 1.0, 1.0])
    )
    np.testing.assert_allclose(got, [0.5, 0.0, 1.5, 1.0])
    zeros = adv.duration_weights(jnp.zeros(2), jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(zeros, [1.0, 0.0])


def test_the_kl_weight_follows_the_divergence_within_bounds():
    # Half a horizon of samples: an error of +0.1 raises the weight by 5 %.
    def adapt(kl):
        return adapt_kl_coef(
            jnp.float32(0.2), jnp.float32(kl), target=0.1, horizon=100, num_samples=50
        )

    np.testing.assert_allclose(adapt(0.11), 0.2 * 1.05, rtol=1e-5)
    np.testing.assert_allclose(adapt(0.1), 0.2, rtol=1e-6)
    np.testing.assert_allclose(adapt(50.0), 0.2 * 1.1, rtol=1e-6)
    np.testing.assert_allclose(adapt(-50.0), 0.2 * 0.9, rtol=1e-6)


def gae_of_other_trainers(rewards, values, gamma, lam):
    """verl, TRL and OpenRLHF on one reply: a backward loop over its tokens."""
    last, advantages = 0.0, np.zeros(len(rewards))
    for t in reversed(range(len(rewards))):
        next_value = values[t + 1] if t + 1 < len(rewards) else 0.0
        delta = rewards[t] + gamma * next_value - values[t]
        last = delta + gamma * lam * last
        advantages[t] = last
    return advantages, advantages + values


def random_rollout(seed, num_rows, seq_len=10):
    """A rollout with ragged replies and a dropped row; scores of three models."""
    rng = np.random.default_rng(seed)
    samples = []
    for row in range(num_rows):
        prompt, reply = rng.integers(1, 9, 3), rng.integers(1, 9, rng.integers(1, 7))
        sample = TokenSample(
            prompt=prompt.tolist(),
            reply=reply.tolist(),
            logprobs=rng.normal(-2, 0.3, len(reply)).tolist(),
            reward=float(rng.uniform()),
            duration_s=float(rng.uniform(0.5, 20)),
        )
        samples.append(None if row == 2 else sample)
    batch = jax.tree.map(jnp.array, pad_samples(samples, (seq_len,)))
    scores = Scores(*jnp.array(rng.normal(-2, 0.5, (3, num_rows, seq_len))))
    return batch, scores


@pytest.mark.parametrize("place", ["reward", "loss"])
@pytest.mark.parametrize("seed", SEEDS)
def test_gae_with_kl_in_the_reward_equals_other_trainers(seed, place):
    cfg = make_cfg(
        kl_coef=0.2, kl=KlConfig(place=place), gamma=0.95, gae_lambda=0.9,
        whiten_advantages=True,
    )  # fmt: skip
    batch, scores = random_rollout(seed, num_rows=4)
    old, ref, values = map(np.asarray, scores)
    mask = np.asarray(batch.response_mask_BT) > 0
    expected = np.zeros(mask.shape)
    returns = np.zeros(mask.shape)
    for row in (0, 1, 3):
        at = mask[row]
        rewards = np.zeros(at.sum())
        if place == "reward":
            rewards -= 0.2 * (old[row] - ref[row])[at]
        rewards[-1] += batch.rewards_B[row]
        expected[row, at], returns[row, at] = gae_of_other_trainers(
            rewards, values[row, at], 0.95, 0.9
        )
    chosen = expected[mask]
    expected[mask] = (chosen - chosen.mean()) / np.sqrt(chosen.var(ddof=1) + 1e-8)
    got, _ = make_estimate_fn(cfg)(batch, scores, jnp.float32(0.2))
    np.testing.assert_allclose(got.advantages_BT, expected, atol=1e-5)
    np.testing.assert_allclose(got.returns_BT, returns, atol=1e-5)


@pytest.mark.parametrize("estimator", ["gae", "grpo", "rloo"])
def test_every_estimator_keeps_to_its_own_tokens_and_to_fractions(estimator):
    cfg = make_cfg(estimator=estimator, group_std=False)
    batch, scores = random_rollout(0, num_rows=4)
    estimate = make_estimate_fn(cfg)
    before, _ = estimate(batch, scores, jnp.float32(0.0))
    richer = dataclasses.replace(batch, rewards_B=batch.rewards_B.at[0].add(0.25))
    after, _ = estimate(richer, scores, jnp.float32(0.0))
    change = np.asarray(after.advantages_BT - before.advantages_BT)
    mask = np.asarray(batch.response_mask_BT)
    # Row 1 is of the same state, row 3 (its partner dropped) of the other one.
    own, partner = {"gae": (1, 0), "grpo": (0.5, -0.5), "rloo": (1, -1)}[estimator]
    np.testing.assert_allclose(change[0], 0.25 * own * mask[0], atol=1e-6)
    np.testing.assert_allclose(change[1], 0.25 * partner * mask[1], atol=1e-6)
    np.testing.assert_allclose(change[2:], 0.0, atol=1e-6)
    assert np.all(np.asarray(after.advantages_BT)[mask == 0] == 0)


def test_credit_of_an_episode_flows_to_its_earlier_steps_and_nowhere_else():
    cfg = make_cfg(
        mode="episode", episode_steps=2, states_per_update=2, samples_per_state=1
    )
    batch, scores = random_rollout(1, num_rows=4)  # row 2 dropped: episode 1 is row 3
    got, _ = make_estimate_fn(cfg)(batch, scores, jnp.float32(0.0))
    mask, values = np.asarray(batch.response_mask_BT), np.asarray(scores.values_BT)
    rewards = np.asarray(batch.rewards_B)
    to_go = [rewards[0] + rewards[1], rewards[1], 0.0, rewards[3]]
    expected = (np.array(to_go)[:, None] - values) * mask
    np.testing.assert_allclose(got.advantages_BT, expected, atol=1e-5)


def test_gae_across_steps_equals_gae_of_one_long_reply():
    cfg = make_cfg(
        mode="episode", episode_steps=2, states_per_update=2, samples_per_state=1,
        gamma=0.9, gae_lambda=0.8,
    )  # fmt: skip
    batch, scores = random_rollout(2, num_rows=4)
    mask = np.asarray(batch.response_mask_BT) > 0
    rewards_BT = adv.token_rewards(
        batch.rewards_B, jnp.zeros(mask.shape), batch.response_mask_BT, kl_coef=0.0
    )
    got, _ = make_estimator(cfg)(rewards_BT, scores.values_BT, batch.response_mask_BT)
    both = [np.asarray(x)[:2][mask[:2]] for x in (rewards_BT, scores.values_BT)]
    expected, _ = gae_of_other_trainers(*both, 0.9, 0.8)
    np.testing.assert_allclose(np.asarray(got)[:2][mask[:2]], expected, atol=1e-5)


def test_group_scores_of_an_episode_are_its_sum_of_rewards():
    cfg = make_cfg(
        mode="episode", episode_steps=2, states_per_update=1, estimator="rloo"
    )
    batch, scores = random_rollout(3, num_rows=4)
    got, _ = make_estimate_fn(cfg)(batch, scores, jnp.float32(0.0))
    rewards = np.asarray(batch.rewards_B)
    first = rewards[0] + rewards[1] - rewards[3]
    mask = np.asarray(batch.response_mask_BT)
    signs = np.array([first, first, 0.0, -first])
    np.testing.assert_allclose(got.advantages_BT, signs[:, None] * mask, atol=1e-6)


def test_weights_multiply_the_whitened_advantages():
    plain = make_cfg(whiten_advantages=True)
    batch, scores = random_rollout(4, num_rows=4)
    base, _ = make_estimate_fn(plain)(batch, scores, jnp.float32(0.0))
    cfg = dataclasses.replace(plain, importance_cap=2.0, duration_aware=True)
    got, metrics = make_estimate_fn(cfg)(batch, scores, jnp.float32(0.0))
    mask = np.asarray(batch.response_mask_BT)
    ratio = np.exp(
        np.asarray(scores.old_logprobs_BT) - np.asarray(batch.behavior_logprobs_BT)
    )
    durations = np.asarray(batch.durations_B)
    weights = np.minimum(ratio, 2.0) * (durations / (durations.sum() / 3))[:, None]
    np.testing.assert_allclose(
        got.advantages_BT, base.advantages_BT * weights * mask, rtol=1e-4, atol=1e-6
    )
    assert 0 < metrics["importance_capped_frac"] < 1
    np.testing.assert_allclose(
        metrics["duration_weight_max"], durations.max() / (durations.sum() / 3), 1e-5
    )
    np.testing.assert_array_equal(got.returns_BT, base.returns_BT)


@pytest.mark.parametrize("seed", SEEDS)
def test_unclipped_value_loss_is_half_the_squared_error(seed):
    rng = np.random.default_rng(seed)
    new, old, returns = rng.normal(size=(3, 4, 6))
    mask = rng.integers(0, 2, size=(4, 6)).astype(float)
    got = losses.clipped_value_loss(
        jnp.array(new), jnp.array(old), jnp.array(returns), jnp.array(mask),
        value_clip=None, num_tokens=jnp.array(mask.sum()),
    )  # fmt: skip
    expected = 0.5 * ((new - returns) ** 2)[mask > 0].mean()
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "grpo", "samples_per_state": 1}, "compares samples of a state"),
        (
            {
                "estimator": "rloo",
                "samples_per_state": 2,
                "critic_warmup_updates": 1,
            },
            "has no critic",
        ),
        ({"max_staleness": 1}, "ppo.importance_cap = None"),
        ({"kl_coef": 0.0, "kl": KlConfig(target=0.1)}, "ppo.kl.target is set"),
        ({"micro_batch_tokens": 100}, "the longest of ppo.seq_lens, 16384"),
        ({"mode": "episode", "episode_steps": 0}, "ppo.episode_steps = 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    settings = {"states_per_update": 4, "samples_per_state": 1} | changes
    with pytest.raises(ConfigError, match=message):
        make_cfg(**settings)
