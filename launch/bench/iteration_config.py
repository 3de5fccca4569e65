"""The run whose PPO iterations `launch.bench.iteration` measures; nothing is learnt."""

import dataclasses
from pathlib import Path

from mlagent_jax.config import (
    CollectConfig,
    EnvConfig,
    OptimizerConfig,
    PpoConfig,
    RunConfig,
    SampleConfig,
    load_config,
)

_QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"


def get_config() -> RunConfig:
    """Returns a run of the quickstart's model and prompts on six of its tasks.

    Every script is executed, since a cache would answer most of a short run; one
    padded length, so that nothing compiles after the first iteration.
    """
    return dataclasses.replace(
        load_config(str(_QUICKSTART)),
        name="bench_iteration",
        held_in=("digits", "cactus", "shapes", "leaves", "houses", "crystal"),
        held_out=("photo",),
        env=EnvConfig(num_workers=2, max_steps=8, use_cache=False),
        sample=SampleConfig(
            max_reply_tokens=96,
            # Random weights never end a reply; a common pair of letters does.
            stop=("se",),
            num_slots=16,
            steps_per_call=8,
            prefill_chunk=64,
            prompt_buckets=(512,),
        ),
        collect=CollectConfig(trajectories_per_task=4, fresh_per_task=0),
        ppo=PpoConfig(
            states_per_update=64,
            minibatch_size=64,
            micro_batch_size=64,
            seq_lens=(608,),
            importance_cap=2.0,
            actor=OptimizerConfig(peak_lr=1e-6, end_lr_frac=1.0),
            critic=OptimizerConfig(peak_lr=1e-5, end_lr_frac=1.0),
            checkpoint_every=1_000,
            probe_every=0,
        ),
    )
