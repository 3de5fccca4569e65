"""The training tests compile much and compute little, as those of PPO do."""

from tests.rl.conftest import quick_compilation

__all__ = ["quick_compilation"]
