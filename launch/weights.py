"""Loads the weights that a stage of a run ended with."""

from pathlib import Path

from mlagent_jax.config import ModelConfig, RunConfig
from mlagent_jax.errors import ConfigError
from mlagent_jax.model import hf, qwen2
from mlagent_jax.train.checkpoint import candidate_steps, load_params

# Stage -> where its checkpoint keeps the policy, and by what the best is chosen.
_STAGES = {
    "pretrain": ("params", None),
    "sft": ("params", "loss"),
    "ppo": ("actor/params", None),
}


def load_stage_weights(
    config: RunConfig, workdir: Path, stage: str
) -> tuple[ModelConfig, qwen2.Params]:
    """Returns the model and float32 parameters of a finished stage.

    Args:
      config: of the run.
      workdir: run directory.
      stage: "pretrain", "sft" (lowest evaluation loss) or "ppo" (newest).

    Raises:
      ConfigError: there is no such stage.
      CheckpointError: the weights are missing, damaged or of another shape.
    """
    prefix, best_metric = _stage(stage)
    model_cfg = hf.model_of_run(config)
    params = load_params(
        workdir / stage / "checkpoints",
        prefix=prefix,
        template=qwen2.abstract_params(model_cfg),
        best_metric=best_metric,
    )
    return model_cfg, params


def find_checkpoint(stage_dir: Path, stage: str) -> tuple[Path, str]:
    """Returns the checkpoint that a stage ended with and where its policy is in it.

    Args:
      stage_dir: folder of the stage.
      stage: its name, see `load_stage_weights`.

    Raises:
      ConfigError: there is no such stage.
      CheckpointError: the stage has no checkpoint.
    """
    prefix, best_metric = _stage(stage)
    directory = stage_dir / "checkpoints"
    step = candidate_steps(directory, best_metric)[0]
    return directory / str(step), prefix


def _stage(name: str) -> tuple[str, str | None]:
    if name not in _STAGES:
        raise ConfigError(f"no stage {name!r} with weights; stages: {list(_STAGES)}")
    return _STAGES[name]


def tokenizer_path(config: RunConfig, workdir: Path) -> Path:
    """Returns where the run's tokenizer lies."""
    return Path(config.tokenizer.path or workdir / "tokenizer")
