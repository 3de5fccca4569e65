"""Fine-tuning of Qwen-2.5-1.5B, all parameters, on one GPU of 80 GB.

    python -m launch.aot --config=configs/qwen2_5_1_5b_sft.py --topology=h100:1 \
        --program=sft
    python -m launch.measure --config=configs/qwen2_5_1_5b_sft.py --program=sft \
        --workdir=runs/measured_1_5b
    python -m launch.sft --config=configs/qwen2_5_1_5b_sft.py

The 7B run's tasks and settings at rows of 4,096 tokens, 8 an update; prompts are cut to
what leaves room for a reply. Weights: models/Qwen2.5-1.5B-Instruct (or --set init=...).
Expected: BUILD_NOTES.md, "GPU programs, compiled".
"""

import dataclasses

from configs import qwen2_5_7b
from mlagent_jax.config import (
    MeshConfig,
    RunConfig,
    SampleConfig,
    TokenizerConfig,
    qwen2_5,
)
from mlagent_jax.config.qwen2_5 import Size

_SEQ_LEN = 4_096
_REPLY_TOKENS = 1_024


def get_config() -> RunConfig:
    """Returns the run of the 1.5B model."""
    return one_gpu_run("1.5B", name="qwen2_5_1_5b")


def one_gpu_run(size: Size, *, name: str) -> RunConfig:
    """Returns the 7B run with another model, and rows that one GPU can train.

    Args:
      size: of Qwen-2.5, e.g. "1.5B".
      name: of the run.
    """
    weights = f"models/Qwen2.5-{size}-Instruct"
    run = qwen2_5_7b.get_config()
    prompt_tokens = _SEQ_LEN - _REPLY_TOKENS
    return dataclasses.replace(
        run,
        name=name,
        init=weights,
        model=qwen2_5(size, remat="layer"),
        tokenizer=TokenizerConfig(path=weights),
        prompt=dataclasses.replace(run.prompt, max_prompt_tokens=prompt_tokens),
        sample=SampleConfig(
            max_reply_tokens=_REPLY_TOKENS,
            num_slots=64,
            prompt_buckets=(1_024, prompt_tokens),
        ),
        sft=dataclasses.replace(
            run.sft, batch_size=8, micro_batch_size=4, seq_lens=(1_024, _SEQ_LEN)
        ),
        mesh=MeshConfig(fsdp=-1, tensor=1),
    )
