import dataclasses

import jax
import numpy as np
import pytest

from mlagent_jax.config import MeshConfig, SampleConfig
from mlagent_jax.parallel.mesh import make_mesh
from mlagent_jax.sample import cpu_layout
from mlagent_jax.sample.cpu_layout import best_num_lanes, turns_weights
from mlagent_jax.sample.engine import Engine
from tests.sample.conftest import drain


def test_lanes_are_for_small_models_on_the_cores_of_a_cpu(tiny_config, monkeypatch):
    monkeypatch.setattr(cpu_layout, "_num_cores", lambda: 6)
    assert best_num_lanes(tiny_config, 32) == 4  # of 8 rows, no fewer
    assert best_num_lanes(tiny_config, 90) == 6
    assert best_num_lanes(tiny_config, 97) == 1  # no divisor
    assert best_num_lanes(tiny_config, 4) == 1
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=2), jax.devices()[:2])
    assert best_num_lanes(tiny_config, 32, mesh) == 1
    large = dataclasses.replace(tiny_config, vocab_size=1_000_000)
    assert best_num_lanes(large, 32) == 1


def test_weights_are_turned_for_large_models_on_one_cpu(tiny_config):
    large = dataclasses.replace(tiny_config, vocab_size=1_000_000)
    assert turns_weights(large)
    assert turns_weights(large, make_mesh(MeshConfig(), jax.devices()[:1]))
    assert not turns_weights(large, make_mesh(MeshConfig(fsdp=2), jax.devices()[:2]))
    assert not turns_weights(tiny_config)


@pytest.mark.parametrize("has_mesh", [False, True])
def test_turned_weights_give_the_same_replies(graphdef, params, monkeypatch, has_mesh):
    prompts = [list(range(2, 2 + length)) for length in (1, 9, 30, 17)]
    cfg = SampleConfig(
        num_slots=2, max_reply_tokens=12, prefill_chunk=8, prompt_buckets=(32,)
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1]) if has_mesh else None

    def ask(most_cached_bytes: int) -> dict:
        monkeypatch.setattr(cpu_layout, "_MOST_CACHED_BYTES", most_cached_bytes)
        engine = Engine(
            graphdef, params, cfg, end_ids=(1,), pad_id=0, mesh=mesh, num_lanes=1
        )
        for i, prompt in enumerate(prompts):
            engine.submit(str(i), prompt, i)
        return drain(engine)

    plain, turned = ask(1 << 30), ask(0)
    assert plain.keys() == turned.keys()
    for name, reply in turned.items():
        assert reply.tokens == plain[name].tokens
        expected = plain[name].logprobs
        np.testing.assert_allclose(reply.logprobs, expected, rtol=1e-5, atol=1e-5)
