"""Expert trajectories for the 7B run (paper A.3).

    OPENAI_API_KEY=... python -m launch.collect --config=configs/qwen2_5_7b_collect.py

Hardware: CPUs only; one worker a script execution (`env.num_workers`). Expected
result: runs/qwen2_5_7b/trajectories with about 10,000 trajectories of up to 15 steps
on 9 tasks. Without an account: --set collect.policy.kind=scripted.
"""

from configs import qwen2_5_7b
from mlagent_jax.config import RunConfig


def get_config() -> RunConfig:
    """Returns the 7B run as it stands; collecting uses no accelerator."""
    return qwen2_5_7b.get_config()
