"""Several hosts in one run: who writes files, who does what, and replicas to sample.

Training is one program over the devices of all hosts. Sampling is not (design
decision 4): `Replica` reshards the parameters so that each host holds a full copy
over its own devices, as arrays of its own, and no step of the sampler waits for
another host. Work on the host is dealt out by `mine` and collected by `gather`.
Every function here means the obvious thing in a run of one process.

`jax.distributed` is started by launch/device_setup.py; nothing here knows how.
"""

import contextlib
import json
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from mlagent_jax.errors import ConfigError
from mlagent_jax.parallel.mesh import AXES
from mlagent_jax.parallel.sharding import tree_shardings

T = TypeVar("T")

# Of a device's memory; the rest is for the cache and temporary arrays.
_MAX_WEIGHTS_FRAC = 0.9


def is_primary() -> bool:
    """Returns whether this process writes the files that the run has once."""
    return jax.process_index() == 0


def is_only() -> bool:
    """Returns whether this process is the only one of the run."""
    return jax.process_count() == 1


def barrier(name: str) -> None:
    """Returns when all processes have called it with the same name."""
    if not is_only():
        multihost_utils.sync_global_devices(name)


def gather(value: T) -> list[T]:
    """Returns every process's value, by process index; all processes must call it.

    Args:
      value: anything that pickles. It travels between processes of one run only.
    """
    if is_only():
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = _allgather(np.asarray(len(data), np.int32))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(data)] = data
    rows = zip(_allgather(padded), sizes, strict=True)
    return [pickle.loads(row[:size].tobytes()) for row, size in rows]


def mine(items: Sequence[T]) -> Sequence[T]:
    """Returns this process's part of work that all processes have listed alike."""
    return items[jax.process_index() :: jax.process_count()]


def check_same(settings: Mapping[str, Any]) -> None:
    """Refuses a run whose hosts were started with different settings.

    Args:
      settings: JSON values, nested as deep as they like.

    Raises:
      ConfigError: some differ; all of them are listed with each host's value.
    """
    everyone = gather(dict(_flatten("", settings)))
    names = sorted({name for flat in everyone for name in flat})
    lines: list[str] = []
    for name in names:
        values = [flat.get(name, "(missing)") for flat in everyone]
        if len(set(values)) > 1:
            values_text = ", ".join(f"host {i}: {v}" for i, v in enumerate(values))
            lines.append(f"  {name}: {values_text}")
    if lines:
        raise ConfigError(
            "the hosts of this run were started with different settings:\n"
            + "\n".join(lines)
            + "\nstart the same command with the same files on all of them"
        )


class Replica:
    """A full copy of the parameters over the devices of each host.

    Attributes:
      mesh: this host's devices; `tensor` is as large as the model allows.
    """

    def __init__(self, template: Any, dtype: str) -> None:
        """Chooses how a host's devices share a copy.

        Args:
          template: the parameters as arrays or `jax.ShapeDtypeStruct`s.
          dtype: of the copy.

        Raises:
          ConfigError: a copy does not fit one host's devices.
        """
        devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
        local = [d for d in devices if d.process_index == jax.process_index()]
        tensor = _largest_split(local, template)
        self.mesh = _mesh(local, tensor)
        self._shardings = tree_shardings(_mesh(devices, tensor), template)
        self._local_shardings = jax.tree.map(
            lambda s: NamedSharding(self.mesh, s.spec), self._shardings
        )
        self._dtype = jnp.dtype(dtype)
        self._cast = jax.jit(
            lambda params: jax.tree.map(lambda x: x.astype(self._dtype), params)
        )
        _check_memory(template, self._local_shardings, self._dtype, local[0])

    def copy(self, params: Any) -> Any:
        """Returns `params` as arrays on this host's devices; all hosts must call it.

        Args:
          params: like the template, anywhere on the devices of the run.
        """
        if any(leaf.dtype != self._dtype for leaf in jax.tree.leaves(params)):
            params = self._cast(params)  # before anything travels
        everywhere = jax.device_put(params, self._shardings)
        return jax.tree.map(_local_part, everywhere, self._local_shardings)


def _mesh(devices: Sequence[Any], tensor: int) -> Mesh:
    grid = np.asarray(devices).reshape(-1, 1, tensor)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _largest_split(devices: Sequence[Any], template: Any) -> int:
    """Returns over how many of `devices` a copy is split; it divides their number."""
    for size in range(len(devices), 1, -1):
        if len(devices) % size == 0:
            with contextlib.suppress(ConfigError):
                tree_shardings(_mesh(devices, size), template)
                return size
    return 1


def _local_part(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Returns the shards of `array` that are here, which make up all of it."""
    shards = [shard.data for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, shards)


def _check_memory(template: Any, shardings: Any, dtype: Any, device: Any) -> None:
    """Refuses a copy that cannot fit.

    Raises:
      ConfigError: the weights alone need nearly all of a device's memory.
    """
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:
        return
    leaves = zip(jax.tree.leaves(template), jax.tree.leaves(shardings), strict=True)
    needed = sum(
        int(np.prod(sharding.shard_shape(leaf.shape))) * dtype.itemsize
        for leaf, sharding in leaves
    )
    if needed > _MAX_WEIGHTS_FRAC * stats["bytes_limit"]:
        raise ConfigError(
            f"a copy of the weights to sample with needs {needed / 2**30:.1f} GiB on "
            f"each device of a host, which has {stats['bytes_limit'] / 2**30:.1f} GiB; "
            "use hosts with more or larger chips, or a smaller model"
        )


def _allgather(array: np.ndarray) -> np.ndarray:
    return np.asarray(multihost_utils.process_allgather(array))


def _flatten(prefix: str, value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, Mapping):
        return [(prefix, json.dumps(value))]
    parts = [
        _flatten(f"{prefix}.{name}" if prefix else str(name), part)
        for name, part in value.items()
    ]
    return [pair for part in parts for pair in part]
