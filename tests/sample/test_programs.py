import jax
import numpy as np
import pytest

from mlagent_jax.config import MeshConfig, SampleConfig
from mlagent_jax.errors import ConfigError
from mlagent_jax.parallel.mesh import make_mesh
from mlagent_jax.sample.programs import make_programs, split_kv_heads, weights_sharding

CFG = SampleConfig(num_slots=2, max_reply_tokens=4, prefill_chunk=8)


@pytest.mark.parametrize(("tensor", "num_kv_heads"), [(1, 2), (2, 2), (4, 4)])
def test_every_device_has_whole_key_value_heads(tiny_config, tensor, num_kv_heads):
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=tensor), jax.devices()[:tensor])
    assert split_kv_heads(mesh, tiny_config).num_kv_heads == num_kv_heads


def test_a_mesh_that_cuts_a_query_head_is_refused(tiny_config):
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=8), jax.devices())
    with pytest.raises(ConfigError, match="num_kv_heads = 8: expected a divisor"):
        split_kv_heads(mesh, tiny_config)


def test_devices_keep_their_part_alone_where_they_share_a_key_value_head(
    tiny_config, tiny_params
):
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=4), jax.devices()[:4])
    programs = make_programs(tiny_config, CFG, (0,), mesh)
    weights = programs.fuse(tiny_params)
    layer = weights.layers[1]
    kernels = tiny_params["layers"]["self_attn"]
    # Of four query heads each device has one, and the key head that it reads.
    assert {s.data.shape for s in layer.qkv_DKEH.addressable_shards} == {(32, 1, 3, 8)}
    for device, shard in enumerate(layer.qkv_DKEH.addressable_shards):
        for part, (name, head) in enumerate(
            [("q_proj", device), ("k_proj", device // 2), ("v_proj", device // 2)]
        ):
            np.testing.assert_array_equal(
                shard.data[:, 0, part], kernels[name]["kernel"][1, :, head]
            )
    keys = programs.init(16).cache.keys[0][0]
    assert keys.sharding.shard_shape(keys.shape)[1] == 1
    shardings = jax.tree.leaves(weights_sharding(mesh, tiny_config))
    assert [leaf.sharding for leaf in jax.tree.leaves(weights)] == shardings
