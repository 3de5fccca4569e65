"""The two ways of cuDNN's attention, in plain XLA on CPU, against whole matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.config import MeshConfig
from mlagent_jax.model import attention
from mlagent_jax.model.cudnn import attend_cudnn, kernel_cost
from mlagent_jax.parallel.hlo import ArrayShape
from mlagent_jax.parallel.mesh import make_mesh
from tests.model.test_splash import random_case, value_and_gradients


def attend_plain(*case):
    return attend_cudnn(*case, implementation="xla")


def by_whole_matrix(*case):
    return attention.attend_within(*case, implementation="xla")


def with_rows(case, *rows):
    """The case with other segment ids: runs of (id, tokens) for each row."""
    ids = [sum(([number] * count for number, count in row), []) for row in rows]
    return *case[:3], jnp.array(ids, jnp.int32)


@pytest.mark.parametrize(
    "rows",
    [
        ([(1, 40)], [(1, 13), (0, 27)]),  # one sequence each
        ([(7, 5), (0, 35)], [(0, 40)]),  # and a row of padding
        ([(1, 20), (2, 15), (0, 5)], [(1, 40)]),  # packed
        ([(0, 4), (1, 36)], [(1, 40)]),  # padding in front
        ([(1, 10), (0, 10), (1, 20)], [(1, 40)]),  # and between
    ],
)
def test_output_and_gradients_equal_those_of_the_whole_matrix(rows):
    case = with_rows(random_case(2, 40, 4, 2, 16), *rows)
    expected = value_and_gradients(by_whole_matrix, *case)
    found = value_and_gradients(attend_plain, *case)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert np.all(np.isfinite(attend_plain(*case)))


@pytest.mark.parametrize("tensor", [2, 4])
def test_it_runs_on_a_mesh_whose_devices_share_key_value_heads(tensor):
    case = random_case(2, 130, 4, 2, 16)
    expected = attention.attend_within(*case)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=tensor), jax.devices()[: 2 * tensor])
    with jax.set_mesh(mesh):
        found = jax.jit(attend_plain)(*case)
    is_real_BT = np.asarray(case[3] != 0)
    np.testing.assert_allclose(found[is_real_BT], expected[is_real_BT], atol=2e-5)


def test_its_products_are_counted_below_the_diagonal():
    query = ArrayShape(dtype="bf16", dims=(2, 8, 3, 16))
    forward, backward = (
        kernel_cost(f"step/dot_product_attention_{name}/custom-call.1", [query])
        for name in ("fwd", "bwd")
    )
    assert forward is not None
    assert backward is not None
    assert forward.flops == 2 * (2 * 2 * 3 * 16 * 8 * 8) / 2
    assert backward.flops == 2.5 * forward.flops
    assert kernel_cost("splash_mha_fwd", [query]) is None
