"""Builds the policy that a name or a PolicyConfig asks for."""

from launch import common
from mlagent_jax.config import PolicyConfig
from mlagent_jax.errors import ConfigError
from mlagent_jax.policy.base import Policy


def make_policy(run: common.Run, name: str) -> Policy:
    """Returns the policy called `name` in tables.

    Args:
      run: the run whose checkpoints and tasks are meant.
      name: "starter", "expert", "sft", "ppo", "api" or "hf:<folder>".

    Raises:
      ConfigError: no such name.
    """
    if name == "starter":
        from mlagent_jax.evaluation.runner import StarterPolicy

        return StarterPolicy()
    if name == "expert":
        return make_configured_policy(run, run.config.collect.policy, "expert")
    if name in ("sft", "ppo") or name.startswith("hf:"):
        checkpoint = name.removeprefix("hf:")
        policy = PolicyConfig(kind="local", checkpoint=checkpoint)
        return make_configured_policy(run, policy, name.replace(":", "_"))
    raise ConfigError(
        f"policy {name!r}: expected starter, expert, sft, ppo or hf:<folder>"
    )


def make_configured_policy(run: common.Run, cfg: PolicyConfig, name: str) -> Policy:
    """Returns a policy of the kind that `cfg` names."""
    config = run.config
    if cfg.kind == "api":
        from mlagent_jax.policy.api import ApiPolicy

        return ApiPolicy(cfg, config.sample, name=name)
    if cfg.kind == "scripted":
        from mlagent_jax.explore.ideas import load_moves
        from mlagent_jax.policy.scripted import ScriptedPolicy

        task_ids = (*config.held_in, *config.held_out)
        return ScriptedPolicy(load_moves(config.task_root, task_ids), name=name)
    # Only here is jax imported: host stages stay clear of the accelerator.
    from launch.local_policies import load_local_policy

    common.use_compilation_cache()
    return load_local_policy(run, cfg.checkpoint, name)
