"""Counting in compiled modules: recorded lines and fresh CPU modules, by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mlagent_jax.config import MeshConfig
from mlagent_jax.parallel import hlo
from mlagent_jax.parallel.hlo_counts import KernelCost, count, product_flops
from mlagent_jax.parallel.hlo_groups import device_groups
from mlagent_jax.parallel.mesh import make_mesh
from mlagent_jax.parallel.roofline import roofline, spanned_dims
from mlagent_jax.parallel.topology import parse_slice

# As the TPU compiler writes it: a loop of 5 with a gather that two fusions share, a
# product inside a fusion, on-chip memory S(1), an in-place update, a kernel.
RECORDED = """
HloModule jit_step, is_scheduled=true

%gather_product (p0: bf16[8,16], p1: bf16[32,16]) -> bf16[8,32] {
  %p0 = bf16[8,16]{1,0:T(8,128)} parameter(0)
  %p1 = bf16[32,16]{1,0:T(8,128)} parameter(1)
  %all-gather.1 = bf16[32,16]{1,0:T(8,128)} all-gather(%p0), channel_id=7, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  ROOT %convolution.1 = bf16[8,32]{1,0:T(8,128)} convolution(%p0, %p1), dim_labels=bf_oi->bf
}

%update (q0: f32[5,64], q1: f32[1,64], q2: s32[]) -> f32[5,64] {
  %q0 = f32[5,64]{1,0} parameter(0)
  %q1 = f32[1,64]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %put = f32[5,64]{1,0} dynamic-update-slice(%q0, %q1, %q2, %zero)
}

%body (arg: (s32[], bf16[8,16], bf16[32,16], f32[5,64])) -> (s32[], bf16[8,16], bf16[32,16], f32[5,64]) {
  %arg = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)}, bf16[32,16]{1,0:T(8,128)S(1)}, /*index=3*/f32[5,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = bf16[8,16]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %w = bf16[32,16]{1,0:T(8,128)S(1)} get-tuple-element(%arg), index=2
  %stack = f32[5,64]{1,0} get-tuple-element(%arg), index=3
  %row = f32[1,64]{1,0:S(1)} iota(), iota_dimension=1
  %first = bf16[8,32]{1,0:T(8,128)S(1)} fusion(%x, %w), kind=kOutput, calls=%gather_product
  %second = bf16[8,32]{1,0:T(8,128)S(1)} fusion(%x, %w), kind=kOutput, calls=%gather_product
  %put = f32[5,64]{1,0} fusion(%stack, %row, %i), kind=kLoop, calls=%update
  %kernel = bf16[8,16]{1,0:S(1)} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"blocks":"{\\"a\\": 1}"
}}, metadata={op_name="jit(step)/my_kernel"}
  ROOT %out = (s32[], bf16[8,16], bf16[32,16], f32[5,64]) tuple(%i, %x, %w, %put)
}

%condition (arg2: (s32[], bf16[8,16], bf16[32,16], f32[5,64])) -> pred[] {
  %arg2 = (s32[], bf16[8,16], bf16[32,16], f32[5,64]) parameter(0)
  %bound = s32[]{:T(128)} constant(5)
  %j = s32[] get-tuple-element(%arg2), index=0
  ROOT %less = pred[] compare(%j, %bound), direction=LT
}

ENTRY %main (a: (s32[], bf16[8,16], bf16[32,16], f32[5,64])) -> (s32[], bf16[8,16], bf16[32,16], f32[5,64]) {
  %a = (s32[], bf16[8,16], bf16[32,16], f32[5,64]) parameter(0)
  ROOT %loop = (s32[], bf16[8,16], bf16[32,16], f32[5,64]) while(%a), condition=%condition, body=%body
}
"""  # noqa: E501


def test_collectives_of_one_channel_all_count_outside_of_fusions():
    text = """
HloModule jit_step, is_scheduled=true

ENTRY %main (a: bf16[8,16]) -> bf16[32,16] {
  %a = bf16[8,16]{1,0} parameter(0)
  %first = bf16[32,16]{1,0} all-gather(%a), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %second = bf16[32,16]{1,0} all-gather(%a), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
}
"""  # noqa: E501
    counts = count(hlo.parse(text))
    assert [c.received_bytes for c in counts.collectives] == [3 * 256, 3 * 256]


@pytest.fixture(scope="module")
def recorded():
    def cost(name, operands):
        assert "my_kernel" in name
        return KernelCost(flops=10.0, hbm_bytes=3.0 * operands[0].num_bytes)

    return count(hlo.parse(RECORDED), cost)


def test_products_in_fusions_count_as_often_as_their_loop_turns(recorded):
    assert recorded.product_flops == 5 * 2 * (2 * 8 * 32 * 16)
    assert recorded.kernel_flops == 5 * 10.0


def test_a_collective_that_two_fusions_share_counts_once_a_turn(recorded):
    (gather,) = recorded.collectives
    assert gather.received_bytes == 5 * (8 * 16 * 2) * 3  # from 3 other devices
    assert (gather.kind, gather.group, gather.executions) == (
        "all-gather",
        (0, 2, 4, 6),
        5,
    )


def test_only_what_passes_main_memory_counts_as_traffic(recorded):
    x = 8 * 16 * 2
    # Both fusions read x, the update reads an index and writes one row, the kernel
    # says itself.
    assert recorded.hbm_bytes == 5 * (2 * x + 4 + 64 * 4 + 3 * x)


def test_what_a_nested_fusion_only_renames_is_read_whole():
    text = """
%rename (p: f32[4,8]) -> f32[32] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %b = f32[32]{0} bitcast(%p)
}

%outer (q: f32[4,8]) -> f32[] {
  %q = f32[4,8]{1,0} parameter(0)
  %inner = f32[32]{0} fusion(%q), kind=kLoop, calls=%rename
  ROOT %sum = f32[]{:S(1)} reduce(%inner), to_apply=%add
}

ENTRY %main (a: f32[4,8]) -> f32[] {
  %a = f32[4,8]{1,0} parameter(0)
  ROOT %f = f32[]{:S(1)} fusion(%a), kind=kInput, calls=%outer
}
"""
    assert count(hlo.parse(text)).hbm_bytes == 4 * 8 * 4


def test_a_loop_whose_trips_depend_on_data_is_named_and_counts_once():
    text = RECORDED.replace("constant(5)", "parameter(1)")
    counts = count(hlo.parse(text))
    assert counts.open_loops == ["loop"]
    assert counts.product_flops == 2 * (2 * 8 * 32 * 16)
    assert counts.unknown_kernels == ["kernel"]


@pytest.mark.parametrize(
    ("attrs", "expected"),
    [
        ("replica_groups={{0,1},{2,3}}, dim", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4], dim", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), dim", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        (
            "replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}",
            [[0, 2], [1, 3]],
        ),
        ("source_target_pairs={{0,1},{1,0}}, x", [[0, 1], [1, 0]]),
        ("dimensions={0}", []),
    ],
)
def test_all_notations_of_groups_are_read(attrs, expected):
    assert device_groups(attrs) == expected


def test_a_batched_product_written_as_a_convolution_has_the_same_flops():
    # 7 heads as a spatial dimension, of which each output sees one input.
    text = (
        "ROOT %c = bf16[100,7,128]{2,0,1} convolution(%a, %b), "
        "window={size=7 pad=6_6 rhs_reversal=1}, dim_labels=bf0_0oi->b0f"
    )
    item = hlo.parse(f"ENTRY %m () -> f32[] {{\n  {text}\n}}").computations["m"].root
    lhs = hlo.ArrayShape(dtype="bf16", dims=(100, 60, 1))
    rhs = hlo.ArrayShape(dtype="bf16", dims=(7, 128, 60))
    assert product_flops(item, [lhs, rhs]) == 2 * 100 * 60 * 7 * 128


def test_a_fresh_module_with_a_scan_counts_as_by_hand():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=1), jax.devices()[:4])
    split = NamedSharding(mesh, PartitionSpec("fsdp", None))

    def f(x, stack):
        def layer(x, w):
            w = jax.lax.with_sharding_constraint(w, PartitionSpec(None, None))
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, stack)[0]

    x = jax.ShapeDtypeStruct((32, 64), jnp.float32, sharding=split)
    stack = jax.ShapeDtypeStruct(
        (6, 64, 64),
        jnp.float32,
        sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp", None)),
    )
    with jax.set_mesh(mesh):
        text = jax.jit(f).lower(x, stack).compile().as_text()
    counts = count(hlo.parse(text))
    assert counts.product_flops == 6 * 2 * (32 // 4) * 64 * 64
    gathers = [c for c in counts.collectives if c.kind == "all-gather"]
    assert sum(c.received_bytes for c in gathers) == 6 * 64 * 64 * 4 * 3 / 4
    assert counts.open_loops == []


def test_times_come_from_peaks_and_from_the_links_that_a_group_spans(recorded):
    target = parse_slice("v5e:2x4")
    coords = [(i % 2, i // 2) for i in range(8)]
    bound = roofline(recorded, target, coords, model_flops=8 * 5e3)
    assert bound.compute_s == recorded.flops / 197e12
    assert bound.hbm_s == recorded.hbm_bytes / 819e9
    assert spanned_dims((0, 2, 4, 6), coords) == [1]
    # Four chips in a row without a ring: one link into the last.
    assert bound.interconnect_s == 5 * 768 / 50e9
    ideal_s = 5e3 / 197e12
    assert bound.mfu_upper_bound == ideal_s / bound.interconnect_s


def test_of_a_conditional_the_dearest_branch_counts():
    def step(is_large, x):
        return jax.lax.cond(is_large, lambda x: x @ x @ x, lambda x: x @ x, x)

    x = jax.ShapeDtypeStruct((16, 16), jnp.float32)
    lowered = jax.jit(step).lower(jax.ShapeDtypeStruct((), bool), x)
    counts = count(hlo.parse(lowered.compile().as_text() or ""))
    assert counts.product_flops == 2 * (2 * 16**3)
