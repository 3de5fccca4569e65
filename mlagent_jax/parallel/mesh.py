"""The device mesh: one for the whole run, axes (data, fsdp, tensor)."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from mlagent_jax.config import MeshConfig
from mlagent_jax.errors import ConfigError

DATA = "data"  # replicas of the parameters
FSDP = "fsdp"  # shards of parameters and optimizer state; the batch is split too
TENSOR = "tensor"  # shards of heads, MLP width and vocabulary
AXES = (DATA, FSDP, TENSOR)


def mesh_shape(cfg: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """Returns the sizes of (data, fsdp, tensor) with -1 resolved.

    Raises:
      ConfigError: the sizes do not multiply to `num_devices`.
    """
    sizes = (cfg.data, cfg.fsdp, cfg.tensor)
    known = int(np.prod([size for size in sizes if size != -1]))
    is_open = -1 in sizes
    is_ok = num_devices % known == 0 if is_open else num_devices == known
    if not is_ok:
        raise ConfigError(
            f"mesh (data, fsdp, tensor) = {sizes}: expected sizes whose product "
            f"{'divides' if is_open else 'is'} the number of devices, {num_devices}"
        )
    data, fsdp, tensor = (num_devices // known if s == -1 else s for s in sizes)
    return data, fsdp, tensor


def make_mesh(cfg: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh over `devices` (default: all of the run's).

    Raises:
      ConfigError: the configured sizes do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(cfg, len(devices))
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
