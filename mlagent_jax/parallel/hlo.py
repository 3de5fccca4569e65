"""Reading a compiled XLA module: computations, instructions, loops and their counts.

`compiled.as_text()` is the only full account of what a device will run. This reads
as much of it as counting needs (`hlo_counts`): the shapes, the operands, who calls
whom, and how often a loop turns. It knows nothing of costs.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_DTYPE_BYTES = {
    "pred": 1,
    "bf16": 2,
    "f16": 2,
    "f32": 4,
    "f64": 8,
    "c64": 8,
    "c128": 16,
}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_CALLS = re.compile(
    r"\b(calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_RESULT = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayShape:
    """One array of a value.

    Attributes:
      dtype: XLA's name, e.g. "bf16".
      dims: sizes, logical order.
      space: memory space; 0 is the device's main memory (HBM).
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def num_elements(self) -> int:
        """Product of the sizes."""
        return math.prod(self.dims)

    @property
    def num_bytes(self) -> int:
        """Size without padding."""
        if self.dtype in ("token", "opaque"):
            return 0
        bits = re.sub(r"\D", "", self.dtype)
        width = _DTYPE_BYTES.get(self.dtype) or max(int(bits or 8) // 8, 1)
        return self.num_elements * width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: without "%".
      opcode: such as "fusion" or "all-gather".
      shapes: arrays of the result, those of a tuple in order.
      operands: names of the arguments.
      attrs: the text behind the arguments.
      is_root: True if it is the computation's result.
    """

    name: str
    opcode: str
    shapes: tuple[ArrayShape, ...]
    operands: tuple[str, ...]
    attrs: str
    is_root: bool

    @property
    def num_bytes(self) -> int:
        """Size of the result, all arrays together."""
        return sum(shape.num_bytes for shape in self.shapes)

    def called(self, *roles: str) -> list[str]:
        """Returns computations called as one of `roles` (all roles if none given)."""
        names = [
            n for role, n in _CALLS.findall(self.attrs) if role in roles or not roles
        ]
        branches = _BRANCHES.search(self.attrs)
        if branches and not roles:
            names += [part.strip().lstrip("%") for part in branches[1].split(",")]
        return names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Computation:
    """A function of the module.

    Attributes:
      name: without "%".
      instructions: by name, in the order in which they run.
    """

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The result."""
        return next(i for i in self.instructions.values() if i.is_root)

    def parameters(self) -> dict[int, Instruction]:
        """Returns the arguments by number."""
        return {
            int(i.operands[0]): i
            for i in self.instructions.values()
            if i.opcode == "parameter"
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
    """A compiled program as one device runs it.

    Attributes:
      computations: by name.
      entry: name of the one that runs first.
    """

    computations: dict[str, Computation]
    entry: str

    def trip_count(self, loop: Instruction) -> int | None:
        """Returns how often a `while` turns, None if that depends on data.

        It is known if XLA says so, or if the condition compares a counter from 0
        with a constant, which is how JAX's loops of fixed length compile.
        """
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attrs)
        if known:
            return int(known[1])
        (name,) = loop.called("condition")
        condition = self.computations[name].instructions
        root = self.computations[name].root
        if root.opcode != "compare" or "direction=LT" not in root.attrs:
            return None
        bound = condition[root.operands[1]]
        if bound.opcode != "constant" or not bound.operands[0].isdecimal():
            return None
        return int(bound.operands[0])


def parse(text: str) -> Module:
    """Returns the module that `compiled.as_text()` describes."""
    computations: dict[str, Computation] = {}
    entry = ""
    name = ""
    lines: list[str] = []
    for line in text.splitlines():
        if not name:
            header = _HEADER.match(line)
            if header and not line.startswith("HloModule"):
                name, lines = header[2], []
                entry = name if header[1] else entry
        elif line.rstrip() == "}":
            parsed = (_parse_instruction(each) for each in lines)
            instructions = {i.name: i for i in parsed if i is not None}
            computations[name] = Computation(name=name, instructions=instructions)
            name = ""
        elif _RESULT.match(line) or not lines:
            lines.append(line)
        else:
            lines[-1] += line  # the metadata of a kernel spans lines
    return Module(computations=computations, entry=entry)


def _parse_instruction(line: str) -> Instruction | None:
    result = _RESULT.match(line)
    if result is None:
        return None
    rest = line[result.end() :]
    end = _matching(rest, 0) if rest.startswith("(") else rest.index(" ")
    type_text, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _matching("(" + rest, 0) - 1
    arguments = re.sub(r"/\*.*?\*/", "", rest[: end - 1])
    return Instruction(
        name=result[2],
        opcode=opcode,
        shapes=tuple(_parse_shapes(type_text)),
        operands=tuple(_split_arguments(arguments)),
        attrs=rest[end:],
        is_root=result[1] is not None,
    )


def _parse_shapes(text: str) -> Iterator[ArrayShape]:
    for dtype, dims, layout in _ARRAY.findall(text):
        space = _SPACE.search(layout)
        yield ArrayShape(
            dtype=dtype,
            dims=tuple(int(d) for d in dims.split(",") if d),
            space=int(space[1]) if space else 0,
        )


def _split_arguments(text: str) -> Iterator[str]:
    """Yields names; XLA may write each argument's type before its name."""
    names = re.findall(r"%([\w.\-]+)", text)
    yield from names or [part.strip() for part in text.split(",") if part.strip()]


def _matching(text: str, start: int) -> int:
    """Returns the index behind the parenthesis that closes the one at `start`.

    Raises:
      ValueError: none does; the text is no module.
    """
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index + 1
    raise ValueError(f"unbalanced parentheses in a line of the module: {text[:80]!r}")
