import pytest
from jax.sharding import AxisType

from mlagent_jax.config import MeshConfig
from mlagent_jax.errors import ConfigError
from mlagent_jax.parallel.mesh import make_mesh, mesh_shape


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((1, -1, 1), (1, 8, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((-1, 2, 1), (4, 2, 1)),
        ((2, 2, 2), (2, 2, 2)),
        ((8, -1, 1), (8, 1, 1)),
    ],
)
def test_minus_one_takes_the_devices_that_are_left(sizes, expected):
    data, fsdp, tensor = sizes
    assert mesh_shape(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), 8) == expected


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 1, 1), r"\(1, 1, 1\): .* product is the number of devices, 8"),
        ((4, 4, 1), r"\(4, 4, 1\): .* is the number of devices, 8"),
        ((3, -1, 1), r"\(3, -1, 1\): .* divides the number of devices, 8"),
        ((16, -1, 1), r"\(16, -1, 1\): .* divides the number of devices, 8"),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(sizes, message):
    data, fsdp, tensor = sizes
    with pytest.raises(ConfigError, match=message):
        mesh_shape(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), 8)


def test_axes_are_named_and_left_to_the_compiler():
    mesh = make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
