"""What is known of one kind of accelerator."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of chip: a TPU, or a GPU.

    Attributes:
      name: as in a slice's name.
      platform: jax's name for what it is.
      kinds: how jax's devices of this kind call themselves (`device_kind`).
      flops_per_s: peak of bfloat16 products.
      hbm_bytes: memory that a program may use.
      hbm_bytes_per_s: peak of the memory's bandwidth.
      link_bytes_per_s: one interconnect link in one direction: the published
        bandwidth of a chip divided by its links.
      num_dims: dimensions of the interconnect, two links each; the one of GPUs is a
        switch, with one link to a chip.
      max_shape: the largest slice. An axis of TPUs has a wrap-around link if it is that
        long (2D) or a multiple of 4 chips (3D).
      description: how the compiler is told of it: the variant of the chip that libtpu
        shall take (None is its default), or XLA's description of a GPU.
    """

    name: str
    platform: Literal["tpu", "gpu"]
    kinds: tuple[str, ...]
    flops_per_s: float
    hbm_bytes: int
    hbm_bytes_per_s: float
    link_bytes_per_s: float
    num_dims: int
    max_shape: tuple[int, ...]
    description: str | None = None
