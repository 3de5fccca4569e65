"""Makes the worker pool that the config asks for."""

from collections.abc import Mapping
from pathlib import Path

from mlagent_jax.config import EnvConfig
from mlagent_jax.env.ray_pool import RayPool
from mlagent_jax.env.worker_pool import WorkerPool
from mlagent_jax.types import Task


def make_pool(
    tasks: Mapping[str, Task], store_root: Path, cfg: EnvConfig
) -> WorkerPool | RayPool:
    """Returns a pool of `cfg.num_workers` environments, on this host or on Ray.

    Args:
      tasks: task id -> task.
      store_root: folder of the snapshot store that the workers share.
      cfg: `backend` and the settings of the environments.

    Raises:
      ConfigError: there is no such Ray cluster.
    """
    if cfg.backend == "ray":
        return RayPool(tasks, store_root, cfg)
    return WorkerPool(tasks, store_root, cfg)
