"""Loads policies that our own sampler runs: checkpoints of a run or HF folders."""

from pathlib import Path

from launch import common
from mlagent_jax.errors import ConfigError
from mlagent_jax.model import hf, qwen2
from mlagent_jax.policy.local import LocalPolicy
from mlagent_jax.rl.loop import load_sft_params
from mlagent_jax.text.tokenizer import Tokenizer
from mlagent_jax.train.checkpoint import load_params


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
    config, workdir = run.config, run.workdir
    tokenizer_path = Path(config.tokenizer.path or workdir / "tokenizer")
    if checkpoint in ("sft", "ppo"):
        model_cfg = config.model or hf.load_config(Path(str(config.init)))
        params = (
            load_sft_params(workdir, model_cfg)
            if checkpoint == "sft"
            else load_params(
                workdir / "ppo" / "checkpoints",
                prefix="actor/params",
                template=qwen2.abstract_params(model_cfg),
            )
        )
    else:
        folder = Path(checkpoint)
        if not folder.is_dir():
            raise ConfigError(f"policy hf:{checkpoint}: no such folder")
        model_cfg, params = hf.load_folder(folder)
        tokenizer_path = folder
    return LocalPolicy(
        name=name,
        graphdef=qwen2.make_graphdef(model_cfg),
        params=params,
        tokenizer=Tokenizer.load(tokenizer_path),
        cfg=config.sample,
        max_prompt_tokens=config.prompt.max_prompt_tokens,
    )
