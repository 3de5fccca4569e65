"""Compilation settings of the PPO tests, which compile much and compute little."""

import jax
import pytest

_CACHE = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """Compiles each program once, quickly; returns the folder that keeps them."""
    before = [getattr(jax.config, name) for name in _CACHE]
    folder = str(tmp_path_factory.getbasetemp() / "xla")
    for name, value in zip(_CACHE, (folder, 0.0), strict=True):
        jax.config.update(name, value)
    jax.config.update("jax_disable_most_optimizations", True)
    yield folder
    jax.config.update("jax_disable_most_optimizations", False)
    for name, value in zip(_CACHE, before, strict=True):
        jax.config.update(name, value)
