"""The smallest run that passes through every stage; nothing is learned in it."""

import dataclasses
import importlib.util
from pathlib import Path

from mlagent_jax.config import PretrainConfig, RunConfig

_QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"


def get_config() -> RunConfig:
    """Returns the quickstart with two training tasks and very few updates."""
    spec = importlib.util.spec_from_file_location("quickstart_config", _QUICKSTART)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    base: RunConfig = module.get_config()
    assert base.model is not None
    return dataclasses.replace(
        base,
        name="tiny",
        held_in=base.held_in[:2],
        held_out=base.held_out[:1],
        model=dataclasses.replace(
            base.model,
            hidden_size=32,
            intermediate_size=64,
            num_heads=2,
            num_kv_heads=1,
            head_dim=16,
        ),
        env=dataclasses.replace(base.env, max_steps=3),
        sample=dataclasses.replace(base.sample, max_reply_tokens=24, num_slots=8),
        collect=dataclasses.replace(
            base.collect, trajectories_per_task=4, fresh_per_task=1
        ),
        pretrain=PretrainConfig(num_updates=6, batch_size=4, seq_len=64),
        sft=dataclasses.replace(
            base.sft, num_epochs=2.0, batch_size=4, micro_batch_size=4, eval_every=4
        ),
        ppo=dataclasses.replace(
            base.ppo,
            num_updates=4,
            states_per_update=4,
            minibatch_size=4,
            micro_batch_size=4,
            probe_every=2,
            probe_trajectories=1,
        ),
        eval=dataclasses.replace(
            base.eval,
            trajectories_per_task=2,
            max_steps=3,
            fresh_states=2,
            samples_per_state=1,
        ),
    )
