"""What holds on one host; tests/e2e/test_hosts.py runs two."""

import jax
import numpy as np
import pytest

from mlagent_jax.config import MeshConfig
from mlagent_jax.errors import ConfigError
from mlagent_jax.model import qwen2
from mlagent_jax.parallel import hosts
from mlagent_jax.parallel.mesh import make_mesh
from mlagent_jax.parallel.sharding import tree_shardings


def test_one_process_is_the_whole_run():
    assert hosts.is_primary()
    assert hosts.gather({"a": 1}) == [{"a": 1}]
    assert list(hosts.mine(range(3))) == [0, 1, 2]
    hosts.barrier("nobody waits")
    hosts.check_same({"config": {"seed": 0}})


def test_disagreeing_hosts_are_named_with_every_field(monkeypatch):
    def gather(flat):
        return [flat, flat | {"config.seed": "1", "config.new": "true"}]

    monkeypatch.setattr(hosts, "gather", gather)
    with pytest.raises(ConfigError) as error:
        hosts.check_same({"config": {"seed": 0, "name": "x"}, "versions": {}})
    assert "  config.seed: host 0: 0, host 1: 1\n" in str(error.value)
    assert "  config.new: host 0: (missing), host 1: true\n" in str(error.value)
    assert "name" not in str(error.value)


def test_a_replica_is_a_full_copy_split_as_far_as_the_model_allows(
    tiny_config, tiny_params
):
    mesh = make_mesh(MeshConfig(fsdp=8))
    params = jax.device_put(tiny_params, tree_shardings(mesh, tiny_params))
    replica = hosts.Replica(qwen2.abstract_params(tiny_config), "float32")
    # Four query heads cannot be split over more than four devices.
    assert dict(replica.mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 4}
    copy = replica.copy(params)
    jax.tree.map(np.testing.assert_array_equal, copy, tiny_params)
    attention = copy["layers"]["self_attn"]
    query, key = attention["q_proj"]["kernel"], attention["k_proj"]["kernel"]
    assert query.sharding.mesh == replica.mesh
    assert query.addressable_shards[0].data.shape == (2, 32, 1, 8)
    # Two key/value heads cannot be split four ways: every device keeps both.
    assert key.addressable_shards[0].data.shape == (2, 32, 2, 8)


def test_a_copy_that_fills_a_device_is_refused(tiny_config):
    template = qwen2.abstract_params(tiny_config)

    class Small:
        def memory_stats(self):
            return {"bytes_limit": 1 << 10}

    shardings = hosts.Replica(template, "float32")._local_shardings
    with pytest.raises(ConfigError, match="a copy of the weights to sample with needs"):
        hosts._check_memory(template, shardings, np.dtype(np.float32), Small())
