"""The training tests compile much and compute little, as those of PPO do."""

from tests.rl.conftest import compilation_cache

__all__ = ["compilation_cache"]
