"""PPO losses against hand-computed cases, numpy, torch autograd and identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.rl import losses

SEEDS = range(5)
ONE_ROW = jnp.ones((1, 4))


def random_case(seed, num_rows=5, seq_len=9):
    """Returns new and old log-probs, advantages, new and old values, returns, mask."""
    rng = np.random.default_rng(seed)
    arrays = rng.normal(size=(6, num_rows, seq_len))
    arrays[:2] = -np.abs(arrays[:2])
    mask = rng.integers(0, 2, size=(num_rows, seq_len)).astype(np.float64)
    mask[0] = 0
    return (*arrays, mask)


def policy_loss(new_BT, old_BT, advantages_BT, mask_BT, clip_eps=0.2):
    ratio_BT = jnp.exp(losses.log_ratio(new_BT, old_BT, mask_BT))
    return losses.clipped_surrogate(
        ratio_BT, advantages_BT, mask_BT, clip_eps=clip_eps, num_tokens=mask_BT.sum()
    )


def test_hand_computed_surrogate_covers_all_four_corners():
    ratio_BT = jnp.array([[1.5, 0.5, 1.5, 0.5]])
    advantages_BT = jnp.array([[1.0, 1.0, -1.0, -1.0]])
    # min(1.5, 1.2), min(.5, .8), min(-1.5, -1.2), min(-.5, -.8)
    expected = -(1.2 + 0.5 - 1.5 - 0.8) / 4
    got = losses.clipped_surrogate(
        ratio_BT, advantages_BT, ONE_ROW, clip_eps=0.2, num_tokens=jnp.array(4.0)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    fraction = losses.clip_fraction(
        ratio_BT, advantages_BT, ONE_ROW, clip_eps=0.2, num_tokens=jnp.array(4.0)
    )
    np.testing.assert_allclose(fraction, 0.5)


def test_clipped_tokens_have_no_gradient():
    old_BT = jnp.log(jnp.array([[0.4, 0.4, 0.4, 0.4]]))
    new_BT = jnp.log(jnp.array([[0.6, 0.2, 0.6, 0.2]]))
    advantages_BT = jnp.array([[1.0, 1.0, -1.0, -1.0]])
    grad_BT = jax.grad(policy_loss)(new_BT, old_BT, advantages_BT, ONE_ROW)
    np.testing.assert_allclose(grad_BT, [[0, -0.125, 0.375, 0]], rtol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_at_ratio_one_the_gradient_is_the_policy_gradient(seed):
    _, old, advantages, *_, mask = random_case(seed)
    grad_BT = jax.grad(policy_loss)(
        jnp.array(old), jnp.array(old), jnp.array(advantages), jnp.array(mask)
    )
    np.testing.assert_allclose(grad_BT, -advantages * mask / mask.sum(), atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_surrogate_and_clip_fraction_equal_a_float64_loop(seed):
    new, old, advantages, *_, mask = random_case(seed)
    total, num_clipped = 0.0, 0
    for r, t in zip(*np.nonzero(mask), strict=True):
        ratio, a = np.exp(new[r, t] - old[r, t]), advantages[r, t]
        unclipped, clipped = ratio * a, np.clip(ratio, 0.8, 1.2) * a
        total += min(unclipped, clipped)
        num_clipped += clipped < unclipped
    mask_BT = jnp.array(mask)
    got = policy_loss(jnp.array(new), jnp.array(old), jnp.array(advantages), mask_BT)
    np.testing.assert_allclose(got, -total / mask.sum(), rtol=1e-5)
    fraction = losses.clip_fraction(
        jnp.exp(jnp.array(new - old)),
        jnp.array(advantages),
        mask_BT,
        clip_eps=0.2,
        num_tokens=mask_BT.sum(),
    )
    np.testing.assert_allclose(fraction, num_clipped / mask.sum(), rtol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_value_loss_equals_a_float64_loop(seed):
    *_, new, old, returns, mask = random_case(seed)
    total = 0.0
    for r, t in zip(*np.nonzero(mask), strict=True):
        clipped = np.clip(new[r, t], old[r, t] - 0.5, old[r, t] + 0.5)
        errors = (new[r, t] - returns[r, t]) ** 2, (clipped - returns[r, t]) ** 2
        total += 0.5 * max(errors)
    mask_BT = jnp.array(mask)
    got = losses.clipped_value_loss(
        jnp.array(new),
        jnp.array(old),
        jnp.array(returns),
        mask_BT,
        value_clip=0.5,
        num_tokens=mask_BT.sum(),
    )
    np.testing.assert_allclose(got, total / mask.sum(), rtol=1e-5)


def test_value_step_beyond_the_clip_has_no_gradient():
    def loss(new_BT):
        return losses.clipped_value_loss(
            new_BT,
            jnp.zeros((1, 2)),
            jnp.full((1, 2), 2.0),
            jnp.ones((1, 2)),
            value_clip=0.5,
            num_tokens=jnp.array(2.0),
        )

    # 0.9 has gone its 0.5 towards the target already; 0.1 has not.
    grad_BT = jax.grad(loss)(jnp.array([[0.9, 0.1]]))
    np.testing.assert_allclose(grad_BT, [[0.0, (0.1 - 2.0) / 2]], rtol=1e-6)


def test_approximate_kl_is_zero_without_change_and_never_negative():
    mask_BT = jnp.ones((1, 3))
    count = mask_BT.sum()
    assert losses.approximate_kl(jnp.zeros((1, 3)), mask_BT, num_tokens=count) == 0
    log_ratio_BT = jnp.log(jnp.array([[0.5, 2.0, 1.25]]))
    expected = np.mean([-0.5 + np.log(2), 1 - np.log(2), 0.25 - np.log(1.25)])
    got = losses.approximate_kl(log_ratio_BT, mask_BT, num_tokens=count)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_explained_variance_of_perfect_constant_and_useless_values():
    returns_BT = jnp.array([[0.0, 1.0, 2.0, 9.0]])
    mask_BT = jnp.array([[1.0, 1.0, 1.0, 0.0]])

    def score(values_BT):
        return losses.explained_variance(values_BT, returns_BT, mask_BT)

    np.testing.assert_allclose(score(returns_BT), 1.0)
    np.testing.assert_allclose(score(jnp.full((1, 4), 5.0)), 0.0, atol=1e-6)
    np.testing.assert_allclose(score(-returns_BT), -3.0, rtol=1e-6)
    np.testing.assert_allclose(
        losses.explained_variance(returns_BT, jnp.ones((1, 4)), mask_BT), 0.0
    )


def all_losses(new, old, advantages, new_values, old_values, returns, mask):
    mask_BT = jnp.array(mask)
    num_tokens = mask_BT.sum()
    value_loss = losses.clipped_value_loss(
        new_values, old_values, returns, mask_BT, value_clip=0.5, num_tokens=num_tokens
    )
    log_ratio_BT = losses.log_ratio(new, old, mask_BT)
    return (
        policy_loss(new, old, advantages, mask_BT)
        + 0.5 * value_loss
        + losses.approximate_kl(log_ratio_BT, mask_BT, num_tokens=num_tokens)
        + losses.masked_mean(new, mask_BT, num_tokens=num_tokens)
    )


@pytest.mark.parametrize("junk", [1e9, -np.inf, np.nan])
def test_padding_reaches_neither_losses_nor_gradients(junk):
    *arrays, mask = random_case(1)
    grad = jax.value_and_grad(all_losses, argnums=(0, 3))
    expected = grad(*[jnp.array(a) for a in arrays], mask)
    got = grad(*[jnp.array(np.where(mask > 0, a, junk)) for a in arrays], mask)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_empty_mask_gives_zero_losses_and_gradients():
    *arrays, mask = random_case(2)
    loss, grads = jax.value_and_grad(all_losses, argnums=(0, 3))(
        *[jnp.array(a) for a in arrays], np.zeros_like(mask)
    )
    assert loss == 0
    for grad in grads:
        np.testing.assert_array_equal(grad, 0)


def test_a_huge_log_ratio_stays_finite():
    loss, grad_BT = jax.value_and_grad(policy_loss)(
        jnp.zeros((1, 4)), jnp.full((1, 4), -1e4), -ONE_ROW, ONE_ROW
    )
    assert np.isfinite(loss)
    assert np.all(np.isfinite(grad_BT))


@pytest.mark.torch
@pytest.mark.parametrize("seed", SEEDS)
def test_losses_and_gradients_equal_torch_autograd(seed):
    torch = pytest.importorskip("torch")
    *arrays, mask = random_case(seed)
    tensors = [torch.tensor(a, dtype=torch.float64) for a in arrays]
    new, old, advantages, new_values, old_values, returns = tensors
    new.requires_grad_(True)
    new_values.requires_grad_(True)
    chosen = torch.tensor(mask > 0)
    ratio = torch.exp(new - old)[chosen]
    gain = torch.minimum(
        ratio * advantages[chosen], ratio.clamp(0.8, 1.2) * advantages[chosen]
    )
    step = (new_values - old_values).clamp(-0.5, 0.5)
    error = torch.maximum(
        (new_values - returns) ** 2, (old_values + step - returns) ** 2
    )[chosen]
    k3 = (ratio - 1 - torch.log(ratio)).mean()
    loss = -gain.mean() + 0.25 * error.mean() + k3 + new[chosen].mean()
    loss.backward()

    got, (grad_new, grad_values) = jax.value_and_grad(all_losses, argnums=(0, 3))(
        *[jnp.array(a) for a in arrays], mask
    )
    np.testing.assert_allclose(got, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(grad_new, new.grad.numpy(), atol=1e-5)
    np.testing.assert_allclose(grad_values, new_values.grad.numpy(), atol=1e-5)
