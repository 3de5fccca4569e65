"""Loads policies that our own sampler runs: stages of a run or HF folders."""

from pathlib import Path

from launch import common
from launch.weights import load_stage_weights, tokenizer_path
from mlagent_jax.errors import ConfigError
from mlagent_jax.model import hf, qwen2
from mlagent_jax.policy.local import LocalPolicy
from mlagent_jax.text.tokenizer import Tokenizer


def load_local_policy(run: common.Run, checkpoint: str, name: str) -> LocalPolicy:
    """Returns a policy that samples from local weights.

    Args:
      run: whose checkpoints and tokenizer are meant.
      checkpoint: "sft", "ppo" or a Hugging Face folder.
      name: of the policy in tables.

    Raises:
      ConfigError: there is no such folder.
      CheckpointError: the weights are missing, damaged or of another shape.
    """
    config = run.config
    if checkpoint in ("sft", "ppo"):
        model_cfg, params = load_stage_weights(config, run.workdir, checkpoint)
        tokenizer = tokenizer_path(config, run.workdir)
    else:
        tokenizer = Path(checkpoint)
        if not tokenizer.is_dir():
            raise ConfigError(f"policy hf:{checkpoint}: no such folder")
        model_cfg, params = hf.load_folder(tokenizer)
    return LocalPolicy(
        name=name,
        graphdef=qwen2.make_graphdef(model_cfg),
        params=params,
        tokenizer=Tokenizer.load(tokenizer),
        cfg=config.sample,
        max_prompt_tokens=config.prompt.max_prompt_tokens,
    )
