import jax
import jax.numpy as jnp
import numpy as np

from mlagent_jax.model import critic, qwen2


def test_critic_starts_as_a_copy_of_the_policy_with_small_values(
    tiny_config, tiny_params
):
    params = critic.init_critic(tiny_config, tiny_params, jax.random.key(3))
    assert set(params) == {"trunk", "value_head"}
    assert "lm_head" not in params["trunk"]
    trunk = {name: tiny_params[name] for name in params["trunk"]}
    assert jax.tree.all(jax.tree.map(np.array_equal, params["trunk"], trunk))
    tokens_BT = jnp.arange(24).reshape(2, 12)
    values_BT = critic.values(
        qwen2.make_graphdef(tiny_config),
        params,
        tokens_BT,
        jnp.broadcast_to(jnp.arange(12), (2, 12)),
        jnp.ones((2, 12), jnp.int32),
    )
    assert values_BT.shape == (2, 12)
    assert values_BT.dtype == jnp.float32
    assert 0 < np.abs(values_BT).max() < 0.1


def test_donating_the_policy_leaves_the_critic_alive(tiny_config):
    policy = qwen2.init_params(tiny_config, jax.random.key(0))
    params = critic.init_critic(tiny_config, policy, jax.random.key(3))
    expected = np.array(params["trunk"]["norm"]["scale"])
    jax.block_until_ready(
        jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(
            policy
        )
    )
    np.testing.assert_array_equal(params["trunk"]["norm"]["scale"], expected)


def test_values_learn_a_target(tiny_config, tiny_params):
    graphdef = qwen2.make_graphdef(tiny_config)
    params = critic.init_critic(tiny_config, tiny_params, jax.random.key(3))
    tokens_BT = jax.random.randint(jax.random.key(1), (4, 8), 0, 64)
    positions_BT = jnp.broadcast_to(jnp.arange(8), (4, 8))
    target_BT = (tokens_BT % 2).astype(jnp.float32)

    @jax.jit
    def step(params):
        def loss(params):
            ones_BT = jnp.ones_like(tokens_BT)
            values_BT = critic.values(
                graphdef, params, tokens_BT, positions_BT, ones_BT
            )
            return jnp.mean(jnp.square(values_BT - target_BT))

        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.05 * g, params, grads), value

    losses = []
    for _ in range(30):
        params, value = step(params)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
