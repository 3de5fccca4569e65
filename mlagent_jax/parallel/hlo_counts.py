"""What one run of a compiled module costs a device, counted instruction by instruction.

XLA's own cost analysis visits the body of a loop once, so it cannot be used for a
model whose layers are a loop. Here everything is multiplied by the trips of the loops
around it. A loop whose trips depend on data counts once; `Counts.open_loops` names it.

- Products: `dot` and `convolution` (what a TPU makes of a product), wherever they are.
- Collectives: bytes that a device must receive, the least that any algorithm moves:
  (n-1)/n of the result for a gather, of the operand for a reduce-scatter or
  all-to-all, twice that for an all-reduce, the operand for a permutation. One that the
  compiler spread over several fusions keeps channel and origin and counts once; the
  channel alone is no name, since `jax.shard_map` gives all of its collectives the same.
- Memory: bytes that instructions outside of fusions read from and write to HBM (what
  the compiler keeps in on-chip memory is marked and does not count). A fusion that
  slices an operand reads the slice; one that updates a part in place writes the part.
- Kernels (Pallas, cuDNN) are opaque: the caller gives a function that knows them.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence

from mlagent_jax.parallel.hlo import ArrayShape, Computation, Instruction, Module
from mlagent_jax.parallel.hlo_groups import device_groups

_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# They move nothing themselves: names for values, or counted where they start or call.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "partition-id",
    "replica-id",
    "after-all",
    "opt-barrier",
}
_FREE_TARGETS = ("ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound")
_SLICES = {"dynamic-slice", "slice", "gather"}
# Pallas on TPU; cuDNN's and cuBLAS' on GPU.
_KERNEL = re.compile(r'custom_call_target="(tpu_custom_call|__cu[a-z]+\$[^"]*)"')
# Updated in place -> which operand holds the new part.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelCost:
    """What one call of a kernel costs.

    Attributes:
      flops: of its products.
      hbm_bytes: read and written; None counts every operand and result once.
    """

    flops: float
    hbm_bytes: float | None = None


# (name of the kernel with its scopes, arguments) -> its cost, None if not known
KernelCosts = Callable[[str, list[ArrayShape]], KernelCost | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """All executions of one collective.

    Attributes:
      kind: "all-gather", ...
      group: devices that exchange data, the first of the groups.
      received_bytes: by one device, all executions together.
      executions: how often it runs.
    """

    kind: str
    group: tuple[int, ...]
    received_bytes: float
    executions: int


@dataclasses.dataclass(kw_only=True)
class Counts:
    """Totals of one device.

    Attributes:
      product_flops: of dots and convolutions.
      kernel_flops: of kernels.
      hbm_bytes: read and written.
      collectives: each with its bytes.
      open_loops: loops that counted once, since their trips depend on data.
      unknown_kernels: kernels without a cost; their products are missing above.
    """

    product_flops: float = 0.0
    kernel_flops: float = 0.0
    hbm_bytes: float = 0.0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    open_loops: list[str] = dataclasses.field(default_factory=list)
    unknown_kernels: list[str] = dataclasses.field(default_factory=list)

    @property
    def flops(self) -> float:
        """Of products and kernels."""
        return self.product_flops + self.kernel_flops

    def add(self, other: "Counts") -> None:
        """Adds what another part of the program costs."""
        for field in dataclasses.fields(self):
            total = getattr(self, field.name) + getattr(other, field.name)
            setattr(self, field.name, total)


def count(module: Module, kernel_costs: KernelCosts | None = None) -> Counts:
    """Returns the totals of one run of `module` on one device.

    Args:
      module: from `hlo.parse`.
      kernel_costs: knows the kernels in it.
    """
    counts = Counts()
    _Counter(module, kernel_costs, counts).visit(module.entry, 1, set(), False)
    return counts


class _Counter:
    """Walks a module from its entry, adding up costs."""

    def __init__(
        self, module: Module, kernel_costs: KernelCosts | None, counts: Counts
    ) -> None:
        self._module = module
        self._kernel_costs = kernel_costs
        self._counts = counts

    def visit(self, name: str, times: int, channels: set[str], is_fused: bool) -> None:
        """Adds `times` runs of a computation.

        Args:
          name: of the computation.
          times: runs of it.
          channels: fused collectives that were counted in this run of the loop body.
          is_fused: within a fusion only products and collectives count.
        """
        computation = self._module.computations[name]
        for item in computation.instructions.values():
            if item.opcode == "while":
                trips = self._module.trip_count(item)
                if trips is None:
                    self._counts.open_loops.append(item.name)
                (body,) = item.called("body")
                self.visit(body, times * (1 if trips is None else trips), set(), False)
            elif item.opcode == "call":
                for callee in item.called():
                    self.visit(callee, times, channels, is_fused)
            elif item.opcode == "conditional":
                self._visit_dearest(item, times, channels, is_fused)
            elif item.opcode == "fusion" or item.opcode.startswith("async-start"):
                for callee in item.called("calls"):
                    self.visit(callee, times, channels, True)
            self._add(computation, item, times, channels, is_fused)

    def _visit_dearest(
        self, item: Instruction, times: int, channels: set[str], is_fused: bool
    ) -> None:
        """Adds the branch of a conditional that costs most: an upper bound."""
        branches: list[Counts] = []
        for callee in item.called():
            branch = _Counter(self._module, self._kernel_costs, Counts())
            branch.visit(callee, times, channels, is_fused)
            branches.append(branch._counts)
        self._counts.add(max(branches, key=lambda c: (c.flops, c.hbm_bytes)))

    def _add(
        self,
        computation: Computation,
        item: Instruction,
        times: int,
        channels: set[str],
        is_fused: bool,
    ) -> None:
        counts = self._counts
        operands = operand_shapes(computation, item)
        if item.opcode in ("dot", "convolution"):
            counts.product_flops += times * product_flops(item, operands)
        cost = None
        if _KERNEL.search(item.attrs):
            cost = self._cost_of_kernel(item, operands)
            counts.kernel_flops += times * cost.flops
        kind = item.opcode.removesuffix("-start")
        if kind in _COLLECTIVES:
            self._add_collective(computation, item, kind, times, channels, is_fused)
        if is_fused:
            return
        if cost is not None and cost.hbm_bytes is not None:
            counts.hbm_bytes += times * cost.hbm_bytes
        else:
            counts.hbm_bytes += times * hbm_bytes(self._module, computation, item)

    def _cost_of_kernel(
        self, item: Instruction, operands: list[ArrayShape]
    ) -> KernelCost:
        cost = None
        if self._kernel_costs is not None:
            scopes = re.search(r'op_name="([^"]*)"', item.attrs)
            name = f"{scopes[1] if scopes else ''}/{item.name}"
            cost = self._kernel_costs(name, operands)
        if cost is None:
            self._counts.unknown_kernels.append(item.name)
            return KernelCost(flops=0.0)
        return cost

    def _add_collective(
        self,
        computation: Computation,
        item: Instruction,
        kind: str,
        times: int,
        channels: set[str],
        is_fused: bool,
    ) -> None:
        if is_fused:
            parts = re.findall(r'channel_id=\d+|op_name="[^"]*"', item.attrs)
            sizes = [str(shape.dims) for shape in item.shapes]
            key = " ".join([kind, *sizes, *(parts or [item.name])])
            if key in channels:
                return
            channels.add(key)
        groups = device_groups(item.attrs)
        size = len(groups[0]) if groups else 1
        if kind == "all-reduce" and computation.root.opcode == "dynamic-slice":
            kind = "reduce-scatter"  # as the TPU compiler writes it, in a fusion
        operand_bytes = sum(s.num_bytes for s in operand_shapes(computation, item))
        received = {
            "all-gather": operand_bytes * (size - 1),
            "all-reduce": 2 * operand_bytes * (size - 1) / size,
            "collective-permute": operand_bytes,
        }.get(kind, operand_bytes * (size - 1) / size)
        self._counts.collectives.append(
            Collective(
                kind=kind,
                group=tuple(groups[0]) if groups else (),
                received_bytes=times * received,
                executions=times,
            )
        )


def operand_shapes(computation: Computation, item: Instruction) -> list[ArrayShape]:
    """Returns the arrays that an instruction reads, those of tuples in order."""
    found = (computation.instructions.get(name) for name in item.operands)
    return [shape for operand in found if operand for shape in operand.shapes]


def product_flops(item: Instruction, operands: Sequence[ArrayShape]) -> float:
    """Returns two times the multiplications of a `dot` or `convolution`."""
    lhs, rhs = operands[0].dims, operands[1].dims
    out = item.shapes[0].dims
    if item.opcode == "dot":
        contracting = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", item.attrs)
        dims = [int(d) for d in contracting[1].split(",") if d] if contracting else []
        inner = 1
        for dim in dims:
            inner *= lhs[dim]
        return 2.0 * item.shapes[0].num_elements * inner
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", item.attrs)
    assert labels is not None  # every convolution has them
    lhs_labels, rhs_labels, out_labels = labels[1], labels[2], labels[3]
    flops = 2.0 * out[out_labels.index("b")] * out[out_labels.index("f")]
    flops *= rhs[rhs_labels.index("i")]
    for dim in (label for label in out_labels if label.isdigit()):
        flops *= _num_valid(
            lhs[lhs_labels.index(dim)],
            rhs[rhs_labels.index(dim)],
            out[out_labels.index(dim)],
            _window(item.attrs, int(dim)),
        )
    return flops


def _window(attrs: str, dim: int) -> dict[str, str]:
    """Returns the settings of one spatial dimension: {"pad": "6_6", ...}."""
    found = re.search(r"window=\{([^}]*)\}", attrs)
    parts = (part.split("=") for part in found[1].split()) if found else ()
    return {name: values.split("x")[dim] for name, values in parts}


def _num_valid(lhs: int, rhs: int, out: int, window: dict[str, str]) -> int:
    """Returns pairs of output and window positions that meet a real input."""
    stride = int(window.get("stride", 1))
    low = int(window.get("pad", "0_0").split("_")[0])
    lhs_dilation = int(window.get("lhs_dilate", 1))
    rhs_dilation = int(window.get("rhs_dilate", 1))
    valid = 0
    for k in range(rhs):
        starts = range(k * rhs_dilation - low, k * rhs_dilation - low + out * stride)
        positions = starts[::stride]
        valid += sum(
            1
            for p in positions
            if p % lhs_dilation == 0 and 0 <= p // lhs_dilation < lhs
        )
    return valid


def hbm_bytes(module: Module, computation: Computation, item: Instruction) -> float:
    """Returns what an instruction outside of fusions reads from and writes to HBM."""
    is_done = item.opcode.endswith("-done") or item.opcode.endswith("-update")
    is_free_call = any(f'target="{t}"' in item.attrs for t in _FREE_TARGETS)
    if item.opcode in _FREE or is_done or is_free_call:
        return 0.0
    operands = operand_shapes(computation, item)
    if item.opcode == "fusion":
        (name,) = item.called("calls")
        return _fusion_bytes(module, module.computations[name], item, operands)
    if item.opcode in ("copy-start", "slice-start"):
        # Result: the source again (slice-start) or first the destination (copy-start).
        if item.opcode == "copy-start":
            return _in_hbm(item.shapes[0]) + _in_hbm(operands[0])
        part = item.shapes[1]
        is_read = operands[0].space == 0
        return _in_hbm(part) + (part.num_bytes if is_read else 0)
    if item.opcode in _UPDATES:
        return 2.0 * _in_hbm(operands[_UPDATES[item.opcode]])
    if item.opcode in _SLICES:
        is_read = operands[0].space == 0
        return _in_hbm(item.shapes[0]) + (item.num_bytes if is_read else 0)
    read = sum(_in_hbm(shape) for shape in operands)
    return float(read + sum(_in_hbm(shape) for shape in item.shapes))


def _in_hbm(shape: ArrayShape) -> int:
    return shape.num_bytes if shape.space == 0 else 0


def _fusion_bytes(
    module: Module,
    body: Computation,
    item: Instruction,
    operands: Sequence[ArrayShape],
) -> float:
    total = 0.0
    for number, parameter in body.parameters().items():
        if number < len(operands) and operands[number].space == 0:
            total += _bytes_read(module, body, parameter)
    for shape, result in zip(item.shapes, _results(body), strict=False):
        if shape.space == 0:
            total += _bytes_written(body, result, shape)
    return total


def _bytes_read(module: Module, body: Computation, value: Instruction) -> float:
    """Returns how much of an operand a fusion reads."""
    # A fusion within a fusion may only rename its operand, for its caller to read.
    read = float(value.num_bytes) if value.is_root else 0.0
    for user in body.instructions.values():
        if value.name not in user.operands:
            continue
        if user.opcode == "bitcast":
            read += _bytes_read(module, body, user)
        elif user.opcode == "tuple":
            continue
        elif user.opcode in _SLICES and user.operands[0] == value.name:
            read += user.num_bytes
        elif user.opcode in _UPDATES and user.operands[0] == value.name:
            continue  # updated in place
        elif user.opcode == "fusion":
            (name,) = user.called("calls")
            inner = module.computations[name]
            numbers = [i for i, n in enumerate(user.operands) if n == value.name]
            parameters = inner.parameters()
            read += sum(_bytes_read(module, inner, parameters[i]) for i in numbers)
        else:
            read += value.num_bytes
    return min(read, float(value.num_bytes))


def _results(body: Computation) -> Iterator[Instruction]:
    """Yields the instructions that make the arrays of a fusion's result."""
    root = body.root
    if root.opcode != "tuple":
        yield root
        return
    for name in root.operands:
        yield body.instructions[name]


def _bytes_written(body: Computation, result: Instruction, shape: ArrayShape) -> float:
    while result.opcode == "bitcast":
        result = body.instructions[result.operands[0]]
    if result.opcode in _UPDATES:
        part = result.operands[_UPDATES[result.opcode]]
        return float(body.instructions[part].num_bytes)
    return float(shape.num_bytes)
