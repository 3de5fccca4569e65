"""Step-wise PPO and its reward."""

import dataclasses
from typing import Literal

from mlagent_jax.config.checks import check
from mlagent_jax.config.training import OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """A named preset of the step reward and its knobs.

    Attributes:
      preset: "paper_v1" (0 / 0.5 / sigmoid), "paper_v2" (-1 / 0 / linear) or
        "bounded" (ours: clipped, scale-free, duration-aware, with milestones).
      alpha: scale of the relative improvement; the paper's v1 uses 100.
      clip: bound of the metric part of `bounded`.
      milestone: credit of `bounded` for a script that fails late, in [0, 1).
      duration_weight: cost in `bounded` of using the whole time limit.
    """

    preset: Literal["paper_v1", "paper_v2", "bounded"] = "paper_v1"
    alpha: float = 100.0
    clip: float = 1.0
    milestone: float = 0.2
    duration_weight: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoConfig:
    """Step-wise PPO (paper A.5); defaults follow verl where the paper is silent.

    Attributes:
      num_updates: rollouts, each followed by its minibatch updates.
      states_per_update: states drawn from the pool.
      samples_per_state: replies sampled for each.
      num_epochs: passes over a rollout.
      minibatch_size: samples of one optimizer update.
      micro_batch_size: samples of one forward pass.
      seq_lens: padded lengths of prompt plus reply, ascending.
      reward: the step reward.
      gamma: discount between tokens.
      gae_lambda: lambda of generalized advantage estimation.
      clip_eps: clip range of the probability ratio.
      value_clip: clip range of the value around the old one.
      value_coef: weight of the value loss (a separate critic: only its scale).
      entropy_coef: weight of the entropy bonus.
      kl_coef: weight of the token-level KL penalty in the reward.
      whiten_advantages: zero mean and unit variance over a rollout's tokens.
      actor: optimizer of the policy.
      critic: optimizer of the critic.
      critic_warmup_updates: first rollouts that train only the critic.
      checkpoint_every: rollouts between checkpoints.
      keep_checkpoints: how many to keep.
      probe_every: rollouts between evaluations for the Figure-4 curve; 0 = never.
      probe_trajectories: trajectories a task in such an evaluation.
    """

    num_updates: int = 40
    states_per_update: int = 64
    samples_per_state: int = 1
    num_epochs: int = 1
    minibatch_size: int = 64
    micro_batch_size: int = 64
    seq_lens: tuple[int, ...] = (16_384,)
    reward: RewardConfig = RewardConfig()
    gamma: float = 1.0
    gae_lambda: float = 1.0
    clip_eps: float = 0.2
    value_clip: float = 0.5
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    kl_coef: float = 0.001
    whiten_advantages: bool = True
    actor: OptimizerConfig = OptimizerConfig(peak_lr=1e-6, end_lr_frac=1.0)
    critic: OptimizerConfig = OptimizerConfig(peak_lr=1e-5, end_lr_frac=1.0)
    critic_warmup_updates: int = 0
    checkpoint_every: int = 1
    keep_checkpoints: int = 2
    probe_every: int = 5
    probe_trajectories: int = 2

    def __post_init__(self) -> None:
        num_samples = self.states_per_update * self.samples_per_state
        check(
            num_samples % self.minibatch_size == 0,
            "ppo.minibatch_size",
            self.minibatch_size,
            f"a divisor of {num_samples} samples an update",
        )
        check(
            self.minibatch_size % self.micro_batch_size == 0,
            "ppo.micro_batch_size",
            self.micro_batch_size,
            "a divisor of minibatch_size",
        )
        check(0 <= self.gamma <= 1, "ppo.gamma", self.gamma, "in [0, 1]")
        check(0 <= self.gae_lambda <= 1, "ppo.gae_lambda", self.gae_lambda, "in [0, 1]")
