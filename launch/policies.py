"""Builds the policy that a name or a PolicyConfig asks for."""

from collections.abc import Callable
from pathlib import Path

from launch import common, device_setup
from mlagent_jax.config import PolicyConfig
from mlagent_jax.data.jsonl import append_line, heal, read_lines
from mlagent_jax.errors import ConfigError
from mlagent_jax.evaluation.costs import spending_path
from mlagent_jax.policy.base import Policy
from mlagent_jax.policy.spending import Spending
from mlagent_jax.text.profiles import get_profile

_TREE = "tree:"


def make_policy(run: common.Run, name: str) -> Policy:
    """Returns the policy called `name` in tables.

    Args:
      run: the run whose checkpoints and tasks are meant.
      name: "starter", "expert", "sft", "ppo", "hf:<folder>", "api:<model>" of
        `eval.endpoints`, or "tree:" before one of them: the same policy, called so.

    Raises:
      ConfigError: no such name.
    """
    base = name.removeprefix(_TREE)
    if base == "starter":
        from mlagent_jax.evaluation.runner import StarterPolicy

        return StarterPolicy(get_profile(run.config.env.profile))
    if base == "expert":
        return make_configured_policy(run, run.config.collect.policy, name)
    if base.startswith("api:"):
        endpoint = _endpoint(run, base.removeprefix("api:"))
        return make_configured_policy(run, endpoint, name)
    if base in ("sft", "ppo") or base.startswith("hf:"):
        policy = PolicyConfig(kind="local", checkpoint=base.removeprefix("hf:"))
        return make_configured_policy(run, policy, name)
    raise ConfigError(
        f"policy {name!r}: expected starter, expert, sft, ppo, hf:<folder>, "
        "api:<model>, or tree:<one of these>"
    )


def make_editor(run: common.Run) -> Policy:
    """Returns who edits files in profile `mlab`; its name identifies the model."""
    cfg = run.config.editor
    match cfg.kind:
        case "scripted":
            from mlagent_jax.policy.literal import LiteralEditor

            return LiteralEditor()
        case "api":
            name = f"api:{cfg.model}@{cfg.base_url}"
        case "local":
            name = f"local:{cfg.checkpoint}"
    return make_configured_policy(run, cfg, name)


def make_configured_policy(run: common.Run, cfg: PolicyConfig, name: str) -> Policy:
    """Returns a policy of the kind that `cfg` names.

    Raises:
      ConfigError: a setting is missing or wrong.
    """
    config = run.config
    if cfg.kind == "api":
        from mlagent_jax.policy.api import ApiPolicy

        spending = open_spending(cfg, run.workdir)
        return ApiPolicy(cfg, config.sample, name=name, spending=spending)
    if cfg.kind == "scripted":
        from mlagent_jax.explore.ideas import load_moves
        from mlagent_jax.policy.scripted import ScriptedPolicy

        task_ids = (*config.held_in, *config.held_out)
        return ScriptedPolicy(
            load_moves(config.task_root, task_ids),
            name=name,
            profile=get_profile(config.env.profile),
        )
    # Only here is jax imported: host stages stay clear of the accelerator.
    from launch.local_policies import load_local_policy

    device_setup.use_compilation_cache()
    return load_local_policy(run, cfg.checkpoint, name)


def open_spending(cfg: PolicyConfig, workdir: Path) -> Spending:
    """Returns what the run has spent on a model; every further answer is written down.

    Raises:
      DataError: the file of the sums is damaged.
    """
    path = spending_path(workdir, cfg.model)
    heal(path)
    lines = [line for line, _ in read_lines(path)]
    return Spending(
        cfg,
        before=(
            sum(line["prompt_tokens"] for line in lines),
            sum(line["reply_tokens"] for line in lines),
        ),
        on_charge=lambda prompt, reply: append_line(
            path, {"prompt_tokens": prompt, "reply_tokens": reply}
        ),
    )


def stop_reason_of(policy: Policy) -> Callable[[], str]:
    """Returns the function that says why no new work should begin with a policy."""
    from mlagent_jax.policy.api import ApiPolicy

    if isinstance(policy, ApiPolicy):
        return policy.spending.stop_reason
    return lambda: ""


def _endpoint(run: common.Run, model: str) -> PolicyConfig:
    endpoints = {e.model: e for e in run.config.eval.endpoints}
    if model not in endpoints:
        raise ConfigError(
            f"policy api:{model}: eval.endpoints has no such model; it has "
            f"{sorted(endpoints)}"
        )
    return endpoints[model]
