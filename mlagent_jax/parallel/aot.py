"""Compiling a program ahead of time for TPUs or GPUs, and saying what came out.

The compiler is the judge of whether a program fits: it places every buffer, and
refuses a program whose buffers do not fit a chip. Kinds of memory are told apart by
the shapes of the arguments and their shardings; what the compiler adds to them is
"temporaries": activations, gradients, gathered weights. The rest of a report comes
from the compiled module's text (`hlo_counts`, `roofline`).
"""

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from mlagent_jax.parallel import hlo
from mlagent_jax.parallel.hlo_counts import Counts, KernelCosts, count
from mlagent_jax.parallel.roofline import (
    Coords,
    Roofline,
    collective_seconds,
    roofline,
    spanned_dims,
)
from mlagent_jax.parallel.topology import Slice

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """What one call of a program does, at the sizes of its arguments.

    Attributes:
      tokens: that it learns from, scores, reads or draws, over all devices.
      flops: what the model must compute for them, over all devices.
      floor_bytes: what a device must read from its memory at least, where that and not
        products sets the pace; else 0.
    """

    tokens: int
    flops: float
    floor_bytes: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A program to compile, or to run on arrays like its arguments.

    Attributes:
      name: such as "sft".
      function: jitted.
      arguments: of it, as `jax.ShapeDtypeStruct`s with shardings.
      mesh: devices it runs on.
      held: kind of memory -> arrays of that kind that exist while it runs, as
        `jax.ShapeDtypeStruct`s with shardings.
      model_flops: what it must compute, over all devices, if loops whose trips depend
        on data count once: one step of decoding, one chunk of a prompt.
      call: what a whole call does.
      settings: sizes that it was made from, for the report.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    mesh: Mesh
    held: Mapping[str, Any]
    model_flops: float
    call: Call
    settings: Mapping[str, Any]

    def lower(self) -> jax.stages.Lowered:
        """Returns the function traced for its arguments."""
        with jax.set_mesh(self.mesh):
            return self.function.lower(*self.arguments)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectiveRow:
    """Collectives of one kind over groups of one size and direction.

    Attributes:
      kind: "all-gather", ...
      group_size: devices that exchange data.
      slice_dims: dimensions of the slice along which they lie.
      executions: of all of them in one run.
      received_bytes: by a device in one run.
      seconds: at the peak of the links.
    """

    kind: str
    group_size: int
    slice_dims: tuple[int, ...]
    executions: int
    received_bytes: float
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramReport:
    """What a program costs; bytes and seconds of one device and one run.

    Attributes:
      name: of the program.
      topology: name of the slice.
      mesh: sizes of the mesh's axes.
      settings: as in `Program`.
      compile_s: seconds of compiling, here.
      fits: True if the compiler found room for everything, beside what the program
        holds without using it.
      hbm: bytes by kind: one entry for each of `Program.held`, "temporaries",
        "total" (the peak) and "capacity". Of a program that does not fit, "total"
        is what the compiler says exceeds the capacity (its temporaries, mostly).
      model_flops: over all devices.
      device_flops: counted products and kernels of one device.
      hbm_traffic_bytes: read and written.
      collectives: from most to least time.
      roofline: None if it does not fit: there is no module then.
      open_loops: loops that count once since their trips depend on data.
      unknown_kernels: kernels whose products are not counted.
      message: the compiler's, if it does not fit.
    """

    name: str
    topology: str
    mesh: Mapping[str, int]
    settings: Mapping[str, Any]
    compile_s: float
    fits: bool
    hbm: Mapping[str, float]
    model_flops: float
    device_flops: float = 0.0
    hbm_traffic_bytes: float = 0.0
    collectives: tuple[CollectiveRow, ...] = ()
    roofline: Roofline | None = None
    open_loops: tuple[str, ...] = ()
    unknown_kernels: tuple[str, ...] = ()
    message: str = ""


def compile_program(
    program: Program, target: Slice, kernel_costs: KernelCosts
) -> tuple[ProgramReport, str]:
    """Returns what a program costs, and the compiled module's text ("" if none).

    Args:
      program: what to compile.
      target: the chips that its mesh consists of.
      kernel_costs: knows the kernels in it.

    Raises:
      JaxRuntimeError: the compiler failed for another reason than memory.
    """
    held = {kind: device_bytes(tree) for kind, tree in program.held.items()}
    common: dict[str, Any] = {
        "name": program.name,
        "topology": target.name,
        "mesh": dict(program.mesh.shape),
        "settings": program.settings,
        "model_flops": program.model_flops,
    }
    capacity = target.chip.hbm_bytes
    lowered = program.lower()
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        hbm = held | {"total": needed_bytes(str(error)), "capacity": float(capacity)}
        return ProgramReport(
            **common,
            compile_s=time.monotonic() - start,
            fits=False,
            hbm=hbm,
            message=str(error)[:2_000],
        ), ""
    compile_s = time.monotonic() - start
    stats = compiled.memory_analysis()
    assert stats is not None  # compilers for TPU and GPU always have them
    text = compiled.as_text() or ""
    counts = count(hlo.parse(text), kernel_costs)
    # The peak of the compiler's placement; its temporaries alone would be a sum of
    # buffers that never exist at once. On-chip memory (128 MiB) is part of it.
    peak = float(stats.peak_memory_in_bytes)
    arguments = float(stats.argument_size_in_bytes)
    # What the program does not use (prefill: the output layer) is no argument of the
    # module, but it stays on the chip.
    total = peak + max(sum(held.values()) - arguments, 0.0)
    hbm = held | {
        "other_arguments": max(arguments - sum(held.values()), 0.0),
        "temporaries": max(peak - arguments, 0.0),
        "host": float(stats.host_temp_size_in_bytes),
        "total": total,
        "capacity": float(capacity),
    }
    coords = device_coords(program.mesh)
    return ProgramReport(
        **common,
        compile_s=compile_s,
        fits=total <= capacity,
        hbm=hbm,
        device_flops=counts.flops,
        hbm_traffic_bytes=counts.hbm_bytes,
        collectives=_collective_rows(counts, target, coords),
        roofline=roofline(counts, target, coords, model_flops=program.model_flops),
        open_loops=tuple(sorted(set(counts.open_loops))),
        unknown_kernels=tuple(sorted(set(counts.unknown_kernels))),
    ), text


def device_bytes(tree: Any) -> float:
    """Returns the bytes of a tree on one device, by its shardings."""
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def device_coords(mesh: Mesh) -> Coords:
    """Returns where each device sits in its slice, in the mesh's order."""
    devices = list(mesh.devices.flat)
    if devices[0].platform == "gpu":
        return [(device.id,) for device in devices]
    return [tuple(device.coords) for device in devices]


def needed_bytes(message: str) -> float:
    """Returns what the compiler says that does not fit, 0.0 if it does not say."""
    found = re.search(
        r"Used ([\d.]+)([KMG]?) of|\(([\d.]+)([KMG])\) exceeds available HBM", message
    )
    if found is None:
        return 0.0
    number, unit = found[1] or found[3], found[2] or found[4] or ""
    return float(number) * _UNITS[unit]


def _collective_rows(
    counts: Counts, target: Slice, coords: Coords
) -> tuple[CollectiveRow, ...]:
    rows: dict[tuple[str, int, tuple[int, ...]], CollectiveRow] = {}
    for item in counts.collectives:
        dims = tuple(spanned_dims(item.group, coords))
        key = (item.kind, len(item.group), dims)
        old = rows.get(key)
        rows[key] = CollectiveRow(
            kind=item.kind,
            group_size=len(item.group),
            slice_dims=dims,
            executions=item.executions + (old.executions if old else 0),
            received_bytes=item.received_bytes + (old.received_bytes if old else 0.0),
            seconds=collective_seconds(item, target, coords)
            + (old.seconds if old else 0.0),
        )
    return tuple(sorted(rows.values(), key=lambda row: -row.seconds))
