"""Schedule, clipping and what weight decay leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlagent_jax.config import OptimizerConfig
from mlagent_jax.train.optimizer import make_optimizer, make_schedule
from mlagent_jax.train.state import apply_gradients, init_state


def test_the_rate_rises_from_above_zero_to_the_peak_and_falls_to_its_end():
    cfg = OptimizerConfig(peak_lr=1.0, warmup_frac=0.2, end_lr_frac=0.1)
    schedule = make_schedule(cfg, 20)
    rates = [float(schedule(i)) for i in range(21)]
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[20] == pytest.approx(0.1)


@pytest.mark.parametrize("num_updates", [1, 2])
def test_a_run_of_one_update_has_a_rate(num_updates):
    schedule = make_schedule(OptimizerConfig(peak_lr=0.5), num_updates)
    assert float(schedule(0)) == 0.5


def test_the_gradient_is_clipped_by_its_global_norm():
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1.0, clip_norm=1.0), 10)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    grads = {"a": jnp.full(2, 30.0), "b": jnp.full(2, 40.0)}
    state = apply_gradients(init_state(params, optimizer), grads, optimizer)
    moments = optax.tree.get(state.opt_state, "mu")
    norm = optax.tree.norm(moments) / (1 - 0.9)
    assert float(norm) == pytest.approx(1.0, rel=1e-5)
    assert int(state.step) == 1


def test_weight_decay_acts_on_kernels_alone():
    optimizer = make_optimizer(OptimizerConfig(peak_lr=0.1, weight_decay=0.5), 10)
    names = ("kernel", "bias", "scale", "embedding")
    params = {name: jnp.ones((2, 2)) for name in names}
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = apply_gradients(init_state(params, optimizer), zeros, optimizer)
    decayed = {k for k, v in state.params.items() if float(v[0, 0]) != 1.0}
    assert decayed == {"kernel"}
    assert float(state.params["kernel"][0, 0]) == pytest.approx(1 - 0.1 * 0.5)
