import pytest

from mlagent_jax.config import MeshConfig, qwen2_5
from mlagent_jax.errors import ConfigError
from mlagent_jax.parallel.fit import check_mesh, tensor_sizes
from mlagent_jax.parallel.topology import CHIPS, chip_of, parse_slice


def test_a_slice_is_read_from_its_name():
    found = parse_slice("v5p:2x2x2")
    assert (found.name, found.num_chips, found.host_shape) == (
        "v5p:2x2x2",
        8,
        (2, 2, 1),
    )
    assert parse_slice("v5e:4x8").num_chips == 32
    assert parse_slice("v6e:1x1").host_shape == (1, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5x:2x2", "unknown chip 'v5x'; expected .* v6e, a100, h100, h200; did you"),
        ("", "unknown chip ''"),
        ("v5p:2x2", "expected 3 sizes, as v5p:2x2x2"),
        ("v5e:4", "expected 2 sizes, as v5e:4x4"),
        ("v5e:axb", "expected 2 sizes"),
        ("h100:2x4", "expected 1 sizes, as h100:1"),
        ("h100:16", "size 0 = 16: expected 1, 2 or an even number up to 8"),
        ("v5e:3x32", r"size 0 = 3: expected 1, 2 or an even.*\n.*size 1 = 32"),
    ],
)
def test_what_is_no_slice_is_refused_with_what_would_be(name, message):
    with pytest.raises(ConfigError, match=message):
        parse_slice(name)


def test_gpus_of_a_host_share_a_switch():
    found = parse_slice("h100:8")
    assert (found.name, found.num_chips, found.host_shape) == ("h100:8", 8, (8,))
    assert found.links_along(0) == 1
    assert parse_slice("h200:1").links_along(0) == 0


def test_a_device_is_recognised_by_what_it_calls_itself():
    kinds = [kind for chip in CHIPS.values() for kind in chip.kinds]
    assert len(kinds) == len(set(kinds))
    assert [chip_of(kind) for kind in kinds] == [
        chip for chip in CHIPS.values() for _ in chip.kinds
    ]
    assert chip_of("NVIDIA H100 80GB HBM3") is CHIPS["h100"]
    assert chip_of("TPU v5 lite") is CHIPS["v5e"]
    assert chip_of("cpu") is None


def test_an_open_line_has_one_link_at_its_end_and_a_ring_has_two():
    assert [parse_slice("v5e:4x16").links_along(dim) for dim in (0, 1)] == [1, 2]
    assert [parse_slice("v5p:2x4x1").links_along(dim) for dim in range(3)] == [1, 2, 0]


def test_tensor_sizes_keep_query_heads_whole_and_share_key_value_heads():
    # 7B: 28 query and 4 key/value heads; 14: 14 does not divide, nor is divided by, 4.
    assert tensor_sizes(qwen2_5("7B"), 32) == [1, 2, 4]
    # 3B: 16 query and 2 key/value heads.
    assert tensor_sizes(qwen2_5("3B"), 16) == [1, 2, 4, 8, 16]


def test_every_size_that_does_not_fit_is_listed_with_what_would():
    with pytest.raises(ConfigError) as caught:
        check_mesh(
            qwen2_5("7B"),
            MeshConfig(data=1, fsdp=3, tensor=8),
            24,
            {"sft.micro_batch_size": 16},
        )
    message = str(caught.value)
    assert "3 sizes do not fit the mesh on 24 devices" in message
    assert "mesh.tensor = 8: does not divide model.num_heads = 28" in message
    assert "fitting: [1, 2, 4]" in message
    assert "mesh.fsdp = 3: does not divide model.hidden_size = 3584" in message
    assert (
        "sft.micro_batch_size = 16: expected a multiple of data x fsdp = 3" in message
    )


def test_a_mesh_of_another_number_of_devices_is_refused():
    with pytest.raises(ConfigError, match="number of devices, 16"):
        check_mesh(qwen2_5("7B"), MeshConfig(fsdp=3, tensor=1), 16, {})
