"""Run configuration: one frozen dataclass a stage, checked when it is built.

A run is a file `configs/<run>.py` with `get_config() -> RunConfig`; single fields
are changed by `--set section.field=value`. Every section checks its own ranges
in `__post_init__`, so that a wrong value stops a program before any work.
"""

from mlagent_jax.config.agent import EnvConfig, PolicyConfig, PromptConfig, SampleConfig
from mlagent_jax.config.costs import CostConfig
from mlagent_jax.config.evaluation import EvalConfig
from mlagent_jax.config.explore import IdeasConfig, KeepConfig
from mlagent_jax.config.grid import Arm, Comparison, Grid, load_grid
from mlagent_jax.config.load import apply_override, apply_overrides, load_config
from mlagent_jax.config.model import MeshConfig, ModelConfig, TokenizerConfig
from mlagent_jax.config.qwen2_5 import qwen2_5
from mlagent_jax.config.rl import KlConfig, PoolConfig, PpoConfig, RewardConfig
from mlagent_jax.config.run import RunConfig
from mlagent_jax.config.training import (
    CollectConfig,
    OptimizerConfig,
    PretrainConfig,
    SftConfig,
)

__all__ = [
    "Arm",
    "CollectConfig",
    "Comparison",
    "CostConfig",
    "EnvConfig",
    "EvalConfig",
    "Grid",
    "IdeasConfig",
    "KeepConfig",
    "KlConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PolicyConfig",
    "PoolConfig",
    "PpoConfig",
    "PretrainConfig",
    "PromptConfig",
    "RewardConfig",
    "RunConfig",
    "SampleConfig",
    "SftConfig",
    "TokenizerConfig",
    "apply_override",
    "apply_overrides",
    "load_config",
    "load_grid",
    "qwen2_5",
]
