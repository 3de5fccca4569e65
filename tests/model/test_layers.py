import jax
import numpy as np
import pytest

from mlagent_jax.model.layers import rope_tables


# One row is computed in parts, many row by row.
@pytest.mark.parametrize("shape", [(1, 64), (1, 7), (1, 1), (5, 16), (5, 1)])
def test_rotary_tables_are_those_of_the_positions(shape):
    rng = np.random.default_rng(0)
    positions_BT = rng.integers(0, 200, shape).astype(np.int32)
    head_dim, theta = 16, 1e4
    tables = jax.jit(rope_tables, static_argnums=(1, 2))(positions_BT, head_dim, theta)
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    angles = positions_BT[..., None] * np.tile(frequencies, 2)
    for table_BTH, expected in zip(
        tables, (np.cos(angles), np.sin(angles)), strict=True
    ):
        assert table_BTH.shape == (*shape, head_dim)
        np.testing.assert_allclose(table_BTH, expected, atol=3e-5)
