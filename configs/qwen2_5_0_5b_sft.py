"""Fine-tuning of Qwen-2.5-0.5B, all parameters, on one GPU.

    python -m launch.measure --config=configs/qwen2_5_0_5b_sft.py --program=sft \
        --workdir=runs/measured_0_5b
    python -m launch.sft --config=configs/qwen2_5_0_5b_sft.py

As `qwen2_5_1_5b_sft.py`, with the weights of models/Qwen2.5-0.5B-Instruct.
"""

from configs.qwen2_5_1_5b_sft import one_gpu_run
from mlagent_jax.config import RunConfig


def get_config() -> RunConfig:
    """Returns the run of the 0.5B model."""
    return one_gpu_run("0.5B", name="qwen2_5_0_5b")
