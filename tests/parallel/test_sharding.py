import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from mlagent_jax.config import MeshConfig
from mlagent_jax.errors import ConfigError
from mlagent_jax.model import critic, qwen2
from mlagent_jax.model.logprobs import token_logprobs
from mlagent_jax.parallel.mesh import FSDP, TENSOR, make_mesh
from mlagent_jax.parallel.sharding import batch_sharding, replicated, tree_shardings


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def specs(mesh, tree):
    return jax.tree.map(lambda s: s.spec, tree_shardings(mesh, tree))


def test_every_parameter_has_its_place(mesh, tiny_params):
    placed = specs(mesh, tiny_params)
    attention = placed["layers"]["self_attn"]
    assert attention["q_proj"]["kernel"] == P(None, "fsdp", "tensor", None)
    assert attention["k_proj"]["bias"] == P(None, "tensor", None)
    assert attention["o_proj"]["kernel"] == P(None, "tensor", None, "fsdp")
    assert placed["layers"]["mlp"]["down_proj"]["kernel"] == P(None, "tensor", "fsdp")
    assert placed["embed_tokens"]["embedding"] == P("tensor", "fsdp")
    assert placed["lm_head"]["kernel"] == P("fsdp", "tensor")
    assert placed["norm"]["scale"] == P(None)


def test_optimizer_state_and_critic_lie_where_their_parameters_do(
    mesh, tiny_config, tiny_params
):
    params = critic.init_critic(tiny_config, tiny_params, jax.random.key(0))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = {"step": jnp.int32(0), "params": params, "opt": optimizer.init(params)}
    placed = specs(mesh, state)
    assert placed["step"] == P()
    adam = placed["opt"][1][0]
    assert adam.count == P()
    assert adam.mu == adam.nu == placed["params"]
    assert placed["params"]["value_head"]["kernel"] == P("fsdp", None)


def test_leaves_without_exactly_one_rule_are_all_listed(mesh, monkeypatch):
    tree = {
        "adapter": {"kernel": jnp.zeros((4, 4))},
        "norm": {"scale": jnp.zeros((2, 4))},
        "layers": {"mlp": {"down_proj": {"kernel": jnp.zeros((2, 4, 4))}}},
    }
    extra = ("down_proj/kernel", P(None, None, None))
    rules = "mlagent_jax.parallel.sharding.RULES"
    from mlagent_jax.parallel.sharding import RULES

    monkeypatch.setattr(rules, (*RULES, extra))
    with pytest.raises(ConfigError, match="3 leaves cannot be placed") as error:
        tree_shardings(mesh, tree)
    text = str(error.value)
    assert "adapter/kernel (4, 4): matches 0 rules" in text
    assert "layers/mlp/down_proj/kernel (2, 4, 4): matches 2 rules" in text
    assert "norm/scale (2, 4): its rule" in text


def test_all_dimensions_that_the_mesh_does_not_divide_are_listed(tiny_config):
    cfg = dataclasses.replace(tiny_config, vocab_size=66, num_heads=6, num_kv_heads=3)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    with pytest.raises(ConfigError, match="9 leaves") as error:
        tree_shardings(mesh, qwen2.abstract_params(cfg))
    for line in [
        "embed_tokens/embedding (66, 32): 66 is not divisible by tensor = 4",
        "layers/self_attn/q_proj/bias (2, 6, 8): 6 is not divisible by tensor = 4",
        "layers/self_attn/k_proj/kernel (2, 32, 3, 8): 3 is not divisible by tensor",
        "layers/self_attn/v_proj/bias (2, 3, 8): 3 is not divisible by tensor = 4",
        "lm_head/kernel (32, 66): 66 is not divisible by tensor = 4",
    ]:
        assert line in str(error.value)


def test_devices_that_share_a_key_value_head_each_hold_it(tiny_config):
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    shardings = tree_shardings(mesh, qwen2.abstract_params(tiny_config))
    attention = shardings["layers"]["self_attn"]
    assert attention["k_proj"]["kernel"].spec == P(None, FSDP, None, None)
    assert attention["v_proj"]["bias"].spec == P(None, None, None)
    assert attention["q_proj"]["kernel"].spec == P(None, FSDP, TENSOR, None)


@pytest.mark.parametrize(("tensor", "width"), [(2, 24), (4, 12)])
def test_eight_devices_give_the_loss_and_gradients_of_one(
    tiny_config, tiny_params, tensor, width
):
    # With tensor = 4, pairs of devices share a key/value head.
    mesh = make_mesh(MeshConfig(data=4 // tensor, fsdp=2, tensor=tensor))
    graphdef = qwen2.make_graphdef(tiny_config)
    tokens_BT = jax.random.randint(jax.random.key(2), (8, 16), 0, 64)
    positions_BT = jnp.broadcast_to(jnp.arange(16), (8, 16))
    segment_ids_BT = (positions_BT < jnp.arange(9, 17)[:, None]).astype(jnp.int32)

    def loss(params, tokens_BT, positions_BT, segment_ids_BT):
        scores = token_logprobs(
            graphdef, params, tokens_BT, positions_BT, segment_ids_BT
        )
        return -jnp.sum(scores.logprobs_BT) / 8

    batch = (tokens_BT, positions_BT, segment_ids_BT)
    expected = jax.jit(jax.value_and_grad(loss))(tiny_params, *batch)
    shardings = tree_shardings(mesh, tiny_params)
    rows = batch_sharding(mesh)
    step = jax.jit(
        jax.value_and_grad(loss),
        in_shardings=(shardings, rows, rows, rows),
        out_shardings=(replicated(mesh), shardings),
    )
    with jax.set_mesh(mesh):
        found = step(
            jax.device_put(tiny_params, shardings), *jax.device_put(batch, rows)
        )
    grad = found[1]["layers"]["mlp"]["up_proj"]["kernel"]
    assert grad.sharding.spec == P(None, "fsdp", "tensor")
    assert grad.addressable_shards[0].data.shape == (2, 16, width)
    for leaf, expected_leaf in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(leaf, expected_leaf, atol=1e-5, rtol=1e-5)
