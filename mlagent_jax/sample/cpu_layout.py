"""How the sampler lays out rows and weights on a CPU; accelerators need neither.

XLA's products of few rows occupy one core and are bound by how fast weights are read.
Small weights stay in the caches of the cores: there the rows are cut into lanes, one a
core. Large ones come from memory each time: there one lane reads them for all rows,
along the axes that products sum over (BUILD_NOTES.md, "Speed").
"""

import os

import jax
import numpy as np
from jax.sharding import Mesh

from mlagent_jax.config import ModelConfig
from mlagent_jax.model import qwen2

_FEWEST_ROWS = 4  # Two lanes of 4 take 0.72 times as long as one of 8.
_MOST_CACHED_BYTES = 32 * 2**20  # With 20 MB two lanes win, with 78 they lose.


def best_num_lanes(
    model_cfg: ModelConfig, num_slots: int, mesh: Mesh | None = None
) -> int:
    """Returns into how many lanes of equal size to cut `num_slots` rows.

    Args:
      model_cfg: the model.
      num_slots: rows in all.
      mesh: devices of the replica, None for the default device.
    """
    if not _is_one_cpu(mesh) or not _stays_cached(model_cfg):
        return 1
    most = max(1, min(_num_cores(), num_slots // _FEWEST_ROWS))
    return max(num for num in range(1, most + 1) if num_slots % num == 0)


def turns_weights(model_cfg: ModelConfig, mesh: Mesh | None = None) -> bool:
    """Returns whether `model.decoder.fuse_weights` shall turn the weights.

    Args:
      model_cfg: the model.
      mesh: devices of the replica, None for the default device.
    """
    return _is_one_cpu(mesh) and not _stays_cached(model_cfg)


def _is_one_cpu(mesh: Mesh | None) -> bool:
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    return device.platform == "cpu" and (mesh is None or mesh.size == 1)


def _stays_cached(model_cfg: ModelConfig) -> bool:
    width = np.dtype(model_cfg.compute_dtype).itemsize
    shapes = jax.tree.leaves(qwen2.abstract_params(model_cfg))
    return width * sum(leaf.size for leaf in shapes) <= _MOST_CACHED_BYTES


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
