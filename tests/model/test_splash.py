"""The Splash kernel, run in interpret mode on CPU, against the blocked form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.config import MeshConfig
from mlagent_jax.model import attention
from mlagent_jax.model.splash import attend_splash, padded_length
from mlagent_jax.parallel.mesh import make_mesh


def random_case(B: int, T: int, N: int, K: int, H: int):
    keys = jax.random.split(jax.random.key(T + N), 4)
    q, k, v = (
        jax.random.normal(key, (B, T, heads, H))
        for key, heads in zip(keys, [N, K, K], strict=False)
    )
    cuts_BT = jax.random.uniform(keys[3], (B, T)) < 0.02
    segment_ids_BT = 1 + jnp.cumsum(cuts_BT, axis=1, dtype=jnp.int32)
    return q, k, v, segment_ids_BT.at[:, T - 20 :].set(0)


def value_and_gradients(attend, q, k, v, segment_ids_BT):
    """The output on real tokens, and gradients of a loss over those."""
    is_real_BT = segment_ids_BT != 0

    def loss(q, k, v):
        out_BTNH = attend(q, k, v, segment_ids_BT)
        out_BTNH = jnp.where(is_real_BT[..., None, None], out_BTNH, 0.0)
        return jnp.sum(jnp.sin(out_BTNH)), out_BTNH

    grads, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return out, *grads


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(2, 2), (4, 1)])
def test_splash_and_its_gradients_equal_the_blocked_form(num_heads, num_kv_heads):
    # 150 tokens: the kernel pads them to two blocks of lanes.
    case = random_case(1, 150, num_heads, num_kv_heads, 128)
    expected = value_and_gradients(attention.attend_within, *case)
    found = value_and_gradients(
        lambda *args: attend_splash(*args, interpret=True), *case
    )
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("tensor", [2, 4])
def test_splash_on_a_mesh_equals_one_device_even_with_shared_key_value_heads(tensor):
    case = random_case(2, 130, 4, 2, 128)
    expected = attention.attend_within(*case)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=tensor), jax.devices()[: 2 * tensor])
    with jax.set_mesh(mesh):
        found = jax.jit(lambda *args: attend_splash(*args, interpret=True))(*case)
    is_real_BT = np.asarray(case[3] != 0)
    np.testing.assert_allclose(found[is_real_BT], expected[is_real_BT], atol=2e-5)


def test_the_kernel_runs_over_whole_blocks():
    assert padded_length(100) == 128
    assert padded_length(512) == 512
    assert padded_length(15_000) == 15_360


def test_auto_goes_by_platform_and_dtype():
    assert attention.resolve("auto", "cpu", jnp.bfloat16) == "blocked"
    assert attention.resolve("auto", "tpu", jnp.bfloat16) == "splash"
    assert attention.resolve("auto", "gpu", jnp.bfloat16) == "cudnn"
    assert attention.resolve("auto", "gpu", jnp.float32) == "xla"
    assert attention.resolve("xla", "tpu", jnp.float32) == "xla"
