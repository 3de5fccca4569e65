"""Builds what a run's `collect.ideas` section asks for: idea pools and embedders."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from launch import common, device_setup
from launch.policies import make_configured_policy, stop_reason_of
from mlagent_jax.errors import ConfigError
from mlagent_jax.explore.collect import IdeaPool, make_idea_pools
from mlagent_jax.explore.embeddings import Embed, EndpointEmbedder, embed_words
from mlagent_jax.explore.written_ideas import write_ideas
from mlagent_jax.types import Task


def idea_pools(
    run: common.Run, tasks: Mapping[str, Task], folder: Path
) -> dict[str, IdeaPool]:
    """Returns the pool of every held-in task.

    Args:
      run: whose config is followed.
      tasks: task id -> task; all held-in tasks.
      folder: of the trajectories; keeps what a language model wrote.

    Raises:
      ConfigError: a setting is missing or wrong.
      PolicyError: an endpoint failed or its budget is used up; nothing is lost.
      TaskError: a task's moves.toml is missing, wrong or too small.
    """
    with ExitStack() as stack:
        embed = _embedder(run, stack)
        write = _writer(run, tasks, folder, stack)
        return make_idea_pools(run.config, write, embed)


def _writer(
    run: common.Run, tasks: Mapping[str, Task], folder: Path, stack: ExitStack
) -> Callable[[str, int], Sequence[str]] | None:
    cfg = run.config.collect.ideas
    if cfg.source == "offline":
        return None
    policy = make_configured_policy(run, cfg.endpoint, "ideas")
    stack.callback(policy.close)

    def write(task_id: str, seed: int) -> Sequence[str]:
        return write_ideas(
            policy,
            tasks[task_id],
            num_ideas=run.config.collect.ideas_per_task,
            cfg=cfg,
            folder=folder,
            seed=seed,
            stop_reason=stop_reason_of(policy),
        )

    return write


def _embedder(run: common.Run, stack: ExitStack) -> Embed:
    cfg = run.config.collect.ideas
    if cfg.embedding == "tfidf":
        return embed_words
    if cfg.embedding == "api":
        embedder = EndpointEmbedder(cfg.embedding_endpoint)
        stack.callback(embedder.close)
        return embedder
    if run.config.init is None:
        raise ConfigError(
            'collect.ideas.embedding = "local": the run has no `init` folder, and its '
            'own weights are trained after the ideas; use "tfidf" or "api"'
        )
    # Only here is jax imported: collecting otherwise stays clear of the accelerator.
    from launch.local_embeddings import load_embedder

    device_setup.use_compilation_cache()
    return load_embedder(Path(run.config.init))
