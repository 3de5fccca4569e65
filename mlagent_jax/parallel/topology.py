"""TPU slices and GPUs by name, their published peaks, and devices to compile for.

`parse_slice("v5p:2x2x2")` is arithmetic on names and needs nothing; `devices` asks the
compiler for TPU (package libtpu) or GPU (jax's CUDA plugin) for the devices, which can
be compiled for and not run on. Neither needs a TPU or GPU.

Peaks of TPUs are Google's: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "System
architecture", read 2026-11-25. Memory is what the compiler lets a program use, read
from its messages; the rest of the chip's memory is its own.
"""

import dataclasses
import difflib
import math
from typing import Any

from mlagent_jax.errors import ConfigError
from mlagent_jax.parallel.chip import Chip
from mlagent_jax.parallel.gpus import GPUS

_GIB = 2**30


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            platform="tpu",
            name="v4",
            kinds=("TPU v4",),
            flops_per_s=275e12,
            hbm_bytes=int(30.75 * _GIB),
            hbm_bytes_per_s=1_228e9,
            link_bytes_per_s=300e9 / 6,  # 2,400 Gbit/s a chip
            num_dims=3,
            max_shape=(12, 16, 16),
            description="megacore",  # both cores of a chip as one device
        ),
        Chip(
            platform="tpu",
            name="v5e",
            kinds=("TPU v5 lite", "TPU v5e"),
            flops_per_s=197e12,
            hbm_bytes=int(15.75 * _GIB),
            hbm_bytes_per_s=819e9,
            link_bytes_per_s=200e9 / 4,  # 1,600 Gbit/s a chip
            num_dims=2,
            max_shape=(16, 16),
        ),
        Chip(
            platform="tpu",
            name="v5p",
            kinds=("TPU v5", "TPU v5p"),
            flops_per_s=459e12,
            hbm_bytes=int(95.74 * _GIB),
            hbm_bytes_per_s=2_765e9,
            link_bytes_per_s=600e9 / 6,  # 4,800 Gbit/s a chip
            num_dims=3,
            max_shape=(16, 16, 24),
        ),
        Chip(
            platform="tpu",
            name="v6e",
            kinds=("TPU v6 lite", "TPU v6e"),
            flops_per_s=918e12,
            hbm_bytes=int(31.25 * _GIB),
            hbm_bytes_per_s=1_640e9,
            link_bytes_per_s=448e9 / 4,  # 3,584 Gbit/s a chip
            num_dims=2,
            max_shape=(16, 16),
        ),
        *GPUS,
    )
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """Chips that are wired together: a slice of TPUs, or GPUs of one host.

    Attributes:
      chip: their kind.
      shape: chips along each dimension of the interconnect.
    """

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The slice as it is written, e.g. "v5p:2x2x2"."""
        return f"{self.chip.name}:{'x'.join(str(n) for n in self.shape)}"

    @property
    def num_chips(self) -> int:
        """Number of chips, each one device."""
        return math.prod(self.shape)

    @property
    def host_shape(self) -> tuple[int, ...]:
        """Chips of one host along each dimension; four TPUs, or all of them."""
        if self.chip.platform == "gpu":
            return self.shape
        return tuple(min(n, m) for n, m in zip(self.shape, (2, 2, 1), strict=False))

    def links_along(self, dim: int) -> int:
        """Links by which the worst-placed chip can receive along a dimension.

        One on an open line, at whose end a chip has one neighbour; two on a ring; one
        to a switch.
        """
        length = self.shape[dim]
        if length == 1:
            return 0
        if self.chip.platform == "gpu":
            return 1
        if self.chip.num_dims == 3:
            return 2 if length % 4 == 0 else 1
        return 2 if length == self.chip.max_shape[dim] else 1


def parse_slice(name: str) -> Slice:
    """Returns the slice called `name`: a chip, a colon and its shape.

    Raises:
      ConfigError: an unknown chip, or a shape that is not made.
    """
    chip_name, _, shape_text = name.partition(":")
    chip = CHIPS.get(chip_name)
    if chip is None:
        near = difflib.get_close_matches(chip_name, CHIPS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"topology {name!r}: unknown chip {chip_name!r}; expected one of "
            f"{', '.join(CHIPS)}{hint}"
        )
    parts = shape_text.split("x")
    example = {1: "1", 2: "4x4", 3: "2x2x2"}[chip.num_dims]
    if len(parts) != chip.num_dims or not all(part.isdecimal() for part in parts):
        raise ConfigError(
            f"topology {name!r}: expected {chip.num_dims} sizes, as {chip_name}:"
            f"{example}"
        )
    shape = tuple(int(part) for part in parts)
    problems = [
        f"  size {dim} = {size}: expected 1, 2 or an even number up to {largest}"
        for dim, (size, largest) in enumerate(zip(shape, chip.max_shape, strict=True))
        if not (1 <= size <= largest and (size == 1 or size % 2 == 0))
    ]
    if problems:
        raise ConfigError(
            f"topology {name!r}: there is no such slice:\n" + "\n".join(problems)
        )
    return Slice(chip=chip, shape=shape)


def chip_of(device_kind: str) -> Chip | None:
    """Returns what is known of devices that jax calls so; None if nothing is."""
    for chip in CHIPS.values():
        if device_kind in chip.kinds:
            return chip
    return None


def devices(target: Slice) -> list[Any]:
    """Returns the devices of a slice, for `make_mesh`; they can be compiled for only.

    Raises:
      ConfigError: the compiler is not installed, or knows no such slice.
    """
    # jax starts its backends on first use: only here, never when this is imported.
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    if target.chip.platform == "gpu":
        options: dict[str, Any] = {
            "platform": "cuda",
            "target_config": target.chip.description,
            "topology": f"1x1x{target.num_chips}",
        }
        package = "jax's CUDA plugin"
    else:
        options = {
            "platform": "tpu",
            "topology_name": target.name,
            "chips_per_host_bounds": (*target.host_shape, 1)[:3],
        }
        if target.chip.description is not None:
            options["chip_config_name"] = target.chip.description
        package = "the package libtpu"
    try:
        return list(topologies.get_topology_desc(**options).devices)
    except (JaxRuntimeError, RuntimeError) as error:
        raise ConfigError(
            f"topology {target.name}: its compiler is missing or refused it ({error}). "
            f'It is {package}: pip install "mlagent_jax[{target.chip.platform}]"'
        ) from error
