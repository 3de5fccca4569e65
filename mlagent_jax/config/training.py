"""Supervised stages: collecting trajectories, optimizer, copying practice, SFT."""

import dataclasses

from mlagent_jax.config.agent import PolicyConfig
from mlagent_jax.config.checks import check
from mlagent_jax.config.explore import IdeasConfig, KeepConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Expert trajectories for fine-tuning and the state pool (paper A.3).

    Attributes:
      policy: the expert.
      trajectories_per_task: recorded for each held-in task.
      fresh_per_task: further ones whose states are kept for comparing policies;
        never trained on.
      ideas_per_task: size of the idea pool (paper: >= 100).
      selected_ideas: the most diverse of them, which are used (paper: 10).
      max_ideas_in_prompt: 1 to this many, at random, go into the first prompt; 0
        leaves ideas out (no exploration).
      num_in_flight: trajectories that run side by side.
      ideas: where they come from and how they are selected.
      keep: which trajectories are trained on.
    """

    policy: PolicyConfig = PolicyConfig()
    trajectories_per_task: int = 40
    fresh_per_task: int = 6
    ideas_per_task: int = 120
    selected_ideas: int = 10
    max_ideas_in_prompt: int = 3
    num_in_flight: int = 16
    ideas: IdeasConfig = IdeasConfig()
    keep: KeepConfig = KeepConfig()

    def __post_init__(self) -> None:
        check(
            1 <= self.selected_ideas <= self.ideas_per_task,
            "collect.selected_ideas",
            self.selected_ideas,
            f"in [1, ideas_per_task = {self.ideas_per_task}]",
        )
        check(
            0 <= self.max_ideas_in_prompt <= self.selected_ideas,
            "collect.max_ideas_in_prompt",
            self.max_ideas_in_prompt,
            f"in [0, selected_ideas = {self.selected_ideas}]",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a cosine schedule.

    Attributes:
      peak_lr: learning rate after warm-up.
      end_lr_frac: final learning rate divided by the peak.
      warmup_frac: part of the updates spent rising linearly from 0.
      weight_decay: decoupled.
      clip_norm: global norm of the gradient.
      b1: decay of the first moment.
      b2: decay of the second moment.
    """

    peak_lr: float
    end_lr_frac: float = 0.0
    warmup_frac: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.95

    def __post_init__(self) -> None:
        check(self.peak_lr > 0, "optimizer.peak_lr", self.peak_lr, "> 0")
        check(
            0 <= self.warmup_frac < 1,
            "optimizer.warmup_frac",
            self.warmup_frac,
            "in [0, 1)",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Copying practice that stands in for pretraining of the embedded default.

    A model with random weights first learns to copy: it is trained on random token
    strings that repeat, until attention heads that find earlier occurrences form.
    Not used when the run starts from a Hugging Face folder.

    Attributes:
      num_updates: optimizer updates.
      batch_size: sequences an update.
      seq_len: tokens a sequence.
      optimizer: its settings.
    """

    num_updates: int = 300
    batch_size: int = 32
    seq_len: int = 128
    optimizer: OptimizerConfig = OptimizerConfig(peak_lr=3e-3, warmup_frac=0.05)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Exploration-enriched supervised fine-tuning (paper A.3, A.4).

    Attributes:
      num_epochs: passes over the examples.
      batch_size: sequences an update, over all devices.
      micro_batch_size: sequences of one forward pass; the rest accumulates.
      quote_frac: further examples, as a part of the others, that practise quoting
        on scripts with exchanged words (data/renaming.py); 0 for a pretrained model.
      mistake_frac: probability of a refused reply before a step of the expert, shown
        but not imitated, so that recovering is learnt (data/mistakes.py).
      seq_lens: padded lengths, ascending; longer examples are cut behind a reply, or
        dropped where not one reply fits.
      packing: put several examples into each row of the longest of `seq_lens`; then
        the sequences of `batch_size` are such rows.
      optimizer: its settings.
      eval_frac: part of the trajectories held back for the evaluation loss.
      eval_every: updates between evaluations and checkpoints.
      keep_checkpoints: how many to keep, the best one besides.
    """

    num_epochs: float = 2.0
    batch_size: int = 64
    micro_batch_size: int = 64
    quote_frac: float = 0.0
    mistake_frac: float = 0.0
    seq_lens: tuple[int, ...] = (15_000,)
    packing: bool = False
    optimizer: OptimizerConfig = OptimizerConfig(peak_lr=2e-5)
    eval_frac: float = 0.05
    eval_every: int = 100
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        is_ok = self.batch_size % self.micro_batch_size == 0
        check(
            is_ok,
            "sft.micro_batch_size",
            self.micro_batch_size,
            f"a divisor of batch_size = {self.batch_size}",
        )
        check(self.quote_frac >= 0, "sft.quote_frac", self.quote_frac, ">= 0")
        is_ok = 0 <= self.mistake_frac < 1
        check(is_ok, "sft.mistake_frac", self.mistake_frac, "in [0, 1)")
