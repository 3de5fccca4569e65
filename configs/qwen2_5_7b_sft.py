"""Fine-tuning of the 7B run with the paper's settings (A.4).

    python -m launch.aot --config=configs/qwen2_5_7b_sft.py --topology=v5p:2x2x2 \
        --program=sft
    python -m launch.sft --config=configs/qwen2_5_7b_sft.py

Hardware: any slice that `launch.aot` says fits; v5p:2x2x2, v6e:4x4 and h100:8 as it
stands. On chips of 16 GB (v5e:4x4) split the layers too:
--set mesh.tensor=4 --set sft.micro_batch_size=4. Expected result: BUILD_NOTES.md,
"TPU programs, compiled"; 10,000 trajectories for 2 epochs in batches of 64.
"""

import dataclasses

from configs import qwen2_5_7b
from mlagent_jax.config import MeshConfig, RunConfig


def get_config() -> RunConfig:
    """Returns the 7B run with parameters and rows split over all chips."""
    return dataclasses.replace(
        qwen2_5_7b.get_config(), mesh=MeshConfig(fsdp=-1, tensor=1)
    )
