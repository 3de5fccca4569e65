"""Fixtures of all tests; eight CPU devices, so that sharding runs anywhere."""

import os

# Before anything imports jax: it reads both once.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from mlagent_jax.config import ModelConfig


class _ByFile(LoadFileScheduling):
    """Gives one worker all tests of a file, and of e2e/ all, which share a run."""

    def _split_scope(self, nodeid: str) -> str:
        return "e2e" if "/e2e/" in nodeid else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(
    config: pytest.Config, log: Any
) -> LoadFileScheduling | None:
    """Replaces the scheduler of `--dist=loadfile`."""
    is_by_file = config.getvalue("dist") == "loadfile"
    return _ByFile(config, log) if is_by_file else None


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Compiles a program once for all tests; returns the folder that keeps them."""
    import jax

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # all workers'
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return str(folder / "xla")


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """A model that runs in milliseconds; every size divides a 2 x 2 x 2 mesh."""
    return ModelConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        rope_theta=10_000.0,
        compute_dtype="float32",
    )


@pytest.fixture(scope="session")
def tiny_params(tiny_config: ModelConfig) -> Any:
    """Random parameters of `tiny_config`."""
    import jax

    from mlagent_jax.model import qwen2

    init = jax.jit(qwen2.init_params, static_argnums=0)
    return init(tiny_config, jax.random.key(0))
