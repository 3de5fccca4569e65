"""AdamW with warm-up and cosine decay, from an `OptimizerConfig`."""

from typing import Any

import jax
import optax

from mlagent_jax.config import OptimizerConfig


def make_schedule(cfg: OptimizerConfig, num_updates: int) -> optax.Schedule:
    """Returns update index (from 0) -> learning rate.

    Warm-up rises linearly and gives the first update a rate above zero; the cosine
    reaches `end_lr_frac * peak_lr` at `num_updates`.
    """
    num_warmup = round(cfg.warmup_frac * num_updates)
    return optax.warmup_cosine_decay_schedule(
        init_value=cfg.peak_lr / (num_warmup + 1),
        peak_value=cfg.peak_lr,
        warmup_steps=num_warmup,
        decay_steps=max(num_updates, num_warmup + 1),
        end_value=cfg.peak_lr * cfg.end_lr_frac,
    )


def make_optimizer(
    cfg: OptimizerConfig, num_updates: int
) -> optax.GradientTransformation:
    """Returns AdamW behind a clip of the gradient's global norm.

    Weight decay acts on the leaves named "kernel" alone: norms, biases and
    embeddings keep their scale.

    Args:
      cfg: rates, decay constants and clip norm.
      num_updates: length of the schedule, in optimizer updates.
    """
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm),
        optax.adamw(
            make_schedule(cfg, num_updates),
            b1=cfg.b1,
            b2=cfg.b2,
            weight_decay=cfg.weight_decay,
            mask=_decay_mask,
        ),
    )


def _decay_mask(params: Any) -> Any:
    def is_kernel(path: tuple[Any, ...], _: jax.Array) -> bool:
        return getattr(path[-1], "key", None) == "kernel"

    return jax.tree_util.tree_map_with_path(is_kernel, params)
