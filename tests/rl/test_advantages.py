"""Advantages against hand-computed cases, numpy loops and identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.rl import advantages as adv

SEEDS = range(5)


def ragged_mask(rng, num_rows=6, seq_len=11, is_contiguous=False):
    if not is_contiguous:
        mask = rng.integers(0, 2, size=(num_rows, seq_len))
    else:
        starts = rng.integers(0, seq_len - 1, size=(num_rows, 1))
        ends = rng.integers(starts, seq_len, size=(num_rows, 1))
        mask = (np.arange(seq_len) >= starts) & (np.arange(seq_len) < ends)
    mask[0] = 0  # a dropped sample
    return mask.astype(np.float64)


def loop_gae(rewards, values, mask, gamma, gae_lambda):
    """GAE by its definition: an explicit sum over the chosen tokens of each row."""
    advantages = np.zeros_like(rewards)
    for row in range(len(rewards)):
        chosen = np.flatnonzero(mask[row])
        deltas = []
        for i, t in enumerate(chosen):
            is_last = i + 1 == len(chosen)
            next_value = 0.0 if is_last else values[row, chosen[i + 1]]
            deltas.append(rewards[row, t] + gamma * next_value - values[row, t])
        for i, t in enumerate(chosen):
            weights = (gamma * gae_lambda) ** np.arange(len(chosen) - i)
            advantages[row, t] = np.sum(weights * deltas[i:])
    return advantages


def test_last_response_token_of_hand_drawn_rows():
    mask_BT = jnp.array(
        [
            [0, 0, 1, 1, 1, 0],
            [0, 1, 0, 1, 0, 0],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 1],
        ],
        jnp.float32,
    )
    expected = [[0, 0, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0], [0] * 6, [0, 0, 0, 0, 0, 1]]
    np.testing.assert_array_equal(adv.last_response_token(mask_BT), expected)


def test_token_rewards_of_a_hand_computed_row():
    mask_BT = jnp.array([[0, 1, 1, 1, 0]], jnp.float32)
    new_BT = jnp.array([[9.0, -1.0, -2.0, -0.5, 9.0]])
    ref_BT = jnp.array([[5.0, -1.5, -1.0, -0.5, 5.0]])
    kl_BT = adv.kl_terms(new_BT, ref_BT, mask_BT, estimator="k1")
    np.testing.assert_allclose(kl_BT, [[0, 0.5, -1.0, 0, 0]])
    rewards_BT = adv.token_rewards(jnp.array([0.7]), kl_BT, mask_BT, kl_coef=0.1)
    np.testing.assert_allclose(rewards_BT, [[0, -0.05, 0.1, 0.7, 0]], rtol=1e-6)


def test_hand_computed_advantages():
    # delta = [.5*.5 - .4, .5*.6 - .5, .7 - .6] = [-.15, -.2, .1], decay .5*.5 = .25.
    rewards_BT = jnp.array([[0, 0, 0, 0.7]])
    values_BT = jnp.array([[7.0, 0.4, 0.5, 0.6]])
    mask_BT = jnp.array([[0.0, 1, 1, 1]])
    advantages_BT, returns_BT = adv.generalized_advantages(
        rewards_BT, values_BT, mask_BT, gamma=0.5, gae_lambda=0.5
    )
    expected = [0, -0.15 + 0.25 * -0.175, -0.175, 0.1]
    np.testing.assert_allclose(advantages_BT[0], expected, atol=1e-7)
    np.testing.assert_allclose(
        returns_BT[0], np.array(expected) + [0, 0.4, 0.5, 0.6], atol=1e-7
    )


def test_fractional_reward_reaches_the_advantage():
    # A buffer with the integer dtype of token ids would turn 0.7 into 0.
    mask_BT = jnp.array([[0.0, 1, 1]])
    rewards_BT = adv.token_rewards(
        jnp.array([0.7]), jnp.zeros((1, 3)), mask_BT, kl_coef=0.0
    )
    advantages_BT, _ = adv.generalized_advantages(
        rewards_BT, jnp.zeros((1, 3)), mask_BT, gamma=1.0, gae_lambda=1.0
    )
    np.testing.assert_allclose(advantages_BT, [[0, 0.7, 0.7]], rtol=1e-6)


def test_integer_rewards_are_refused():
    with pytest.raises(AssertionError):
        adv.token_rewards(
            jnp.array([1]), jnp.zeros((1, 3)), jnp.ones((1, 3)), kl_coef=0.0
        )


def test_each_advantage_sits_on_the_tokens_of_its_own_sample():
    mask_BT = jnp.array(
        [[0, 1, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0]], jnp.float32
    )
    rewards_BT = adv.token_rewards(
        jnp.array([0.25, 0.75, 0.5]), jnp.zeros((3, 5)), mask_BT, kl_coef=0.0
    )
    advantages_BT, returns_BT = adv.generalized_advantages(
        rewards_BT, jnp.zeros((3, 5)), mask_BT, gamma=1.0, gae_lambda=1.0
    )
    expected = [[0, 0.25, 0.25, 0, 0], [0, 0, 0, 0.75, 0.75], [0, 0, 0, 0, 0]]
    np.testing.assert_allclose(advantages_BT, expected)
    np.testing.assert_allclose(returns_BT, expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("is_contiguous", [True, False])
def test_advantages_equal_a_float64_loop(seed, is_contiguous):
    rng = np.random.default_rng(seed)
    mask = ragged_mask(rng, is_contiguous=is_contiguous)
    rewards, values = rng.normal(size=(2, *mask.shape))
    gamma, gae_lambda = rng.uniform(0.5, 1.0, size=2)
    expected = loop_gae(rewards, values, mask, gamma, gae_lambda)
    got_BT, returns_BT = jax.jit(
        lambda r, v, m: adv.generalized_advantages(
            r, v, m, gamma=gamma, gae_lambda=gae_lambda
        )
    )(rewards, values, mask)
    np.testing.assert_allclose(got_BT, expected, atol=1e-5)
    np.testing.assert_allclose(returns_BT, expected + values * mask, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_without_discount_returns_are_the_rewards_to_go(seed):
    rng = np.random.default_rng(seed)
    mask = ragged_mask(rng)
    rewards, values = rng.normal(size=(2, *mask.shape))
    advantages_BT, returns_BT = adv.generalized_advantages(
        jnp.array(rewards),
        jnp.array(values),
        jnp.array(mask),
        gamma=1.0,
        gae_lambda=1.0,
    )
    to_go = np.cumsum((rewards * mask)[:, ::-1], axis=1)[:, ::-1] * mask
    np.testing.assert_allclose(returns_BT, to_go, atol=1e-5)
    np.testing.assert_allclose(advantages_BT, to_go - values * mask, atol=1e-5)


def test_lambda_zero_is_the_one_step_error():
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 3, 5))
    advantages_BT, _ = adv.generalized_advantages(
        jnp.array(rewards),
        jnp.array(values),
        jnp.ones((3, 5)),
        gamma=0.9,
        gae_lambda=0.0,
    )
    next_values = np.pad(values[:, 1:], ((0, 0), (0, 1)))
    np.testing.assert_allclose(
        advantages_BT, rewards + 0.9 * next_values - values, atol=1e-5
    )


@pytest.mark.parametrize("junk", [1e9, np.nan, -np.inf])
def test_what_stands_off_the_mask_changes_nothing(junk):
    rng = np.random.default_rng(3)
    mask = ragged_mask(rng)
    clean = rng.normal(size=(3, *mask.shape))
    dirty = np.where(mask > 0, clean, junk)

    def pipeline(logprobs, ref_logprobs, values):
        kl_BT = adv.kl_terms(logprobs, ref_logprobs, jnp.array(mask), estimator="k1")
        rewards_BT = adv.token_rewards(
            jnp.full(len(mask), 0.3), kl_BT, jnp.array(mask), kl_coef=0.5
        )
        advantages_BT, returns_BT = adv.generalized_advantages(
            rewards_BT, values, jnp.array(mask), gamma=0.9, gae_lambda=0.8
        )
        return adv.whiten(advantages_BT, jnp.array(mask)), returns_BT

    for got, expected in zip(
        pipeline(*jnp.array(dirty)), pipeline(*jnp.array(clean)), strict=True
    ):
        np.testing.assert_array_equal(got, expected)
        assert np.all(np.asarray(got)[mask == 0] == 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_whitened_tokens_have_zero_mean_and_unit_unbiased_variance(seed):
    rng = np.random.default_rng(seed)
    mask = ragged_mask(rng)
    x = rng.normal(3.0, 5.0, size=mask.shape)
    chosen = x[mask > 0]
    expected = (chosen - chosen.mean()) / chosen.std(ddof=1)
    got = np.asarray(adv.whiten(jnp.array(x), jnp.array(mask)))
    np.testing.assert_allclose(got[mask > 0], expected, atol=1e-5)
    assert np.all(got[mask == 0] == 0)


@pytest.mark.parametrize("num_tokens", [0, 1, 4])
def test_whitening_too_few_or_equal_values_gives_zeros(num_tokens):
    mask_BT = (jnp.arange(4) < num_tokens).astype(jnp.float32)[None]
    np.testing.assert_array_equal(adv.whiten(jnp.full((1, 4), 2.0), mask_BT), 0)
