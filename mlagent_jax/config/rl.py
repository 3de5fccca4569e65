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
      clip: most that `bounded` gives for one edit.
      floor: most that `bounded` takes for one action: an invalid one, a failed
        script or a regression. All of them cost a step, and undo takes them back.
      milestone: part of the floor that `bounded` gives back for a failed script that
        reached everything that the sandbox watches for, in [0, 1); see env/reward.py.
      duration_weight: cost in `bounded` of using the whole time limit.
      gap_weight: penalty, with any preset, for a submission whose selection score
        is better than its score on the test part of the same *training* task, in
        units of its headroom. Reads test labels of held-in tasks, never of held-out
        ones; the report says so. 0.0 reads none.
      gap_tolerance: difference that is taken for noise.
    """

    preset: Literal["paper_v1", "paper_v2", "bounded"] = "paper_v1"
    alpha: float = 100.0
    clip: float = 1.0
    floor: float = 1.0
    milestone: float = 0.2
    duration_weight: float = 0.0
    gap_weight: float = 0.0
    gap_tolerance: float = 0.05

    def __post_init__(self) -> None:
        for name in ("clip", "floor", "duration_weight", "gap_weight", "gap_tolerance"):
            value = getattr(self, name)
            check(value >= 0, f"ppo.reward.{name}", value, ">= 0")
        milestone = self.milestone
        check(0 <= milestone < 1, "ppo.reward.milestone", milestone, "in [0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class KlConfig:
    """How the policy is held near its reference; `ppo.kl_coef` is the weight.

    With d = log pi - log pi_ref of a sampled token, "k1" estimates the divergence by
    d, "k2" by d^2 / 2 and "k3" by exp(-d) - 1 + d.

    Attributes:
      place: "reward": subtracted from every token's reward; "loss": a term of the
        policy loss. As a loss k1 has no gradient in the mean: use k2 or k3 there.
      estimator: "k1", "k2" or "k3".
      target: divergence a token that the weight steers at; None keeps it fixed.
      horizon: samples over which the weight follows; only with a target.
    """

    place: Literal["reward", "loss"] = "reward"
    estimator: Literal["k1", "k2", "k3"] = "k1"
    target: float | None = None
    horizon: float = 10_000.0

    def __post_init__(self) -> None:
        is_ok = self.target is None or self.target > 0
        check(is_ok, "ppo.kl.target", self.target, "None or > 0")
        check(self.horizon > 0, "ppo.kl.horizon", self.horizon, "> 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Which states rollouts start from; the paper's are the expert's alone.

    Attributes:
      own_frac: part of the drawn states that come from the policy's own traces.
      own_size: newest own states that are kept.
      by_learnability: a task gives them by reward variance times headroom left;
        False evenly. Tasks take turns either way.
    """

    own_frac: float = 0.0
    own_size: int = 2_048
    by_learnability: bool = True

    def __post_init__(self) -> None:
        frac, size = self.own_frac, self.own_size
        check(0 <= frac <= 1, "ppo.pool.own_frac", frac, "in [0, 1]")
        check(size >= 1, "ppo.pool.own_size", size, ">= 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoConfig:
    """RL by PPO (paper A.5); defaults follow verl where the paper is silent.

    Attributes:
      num_updates: rollouts, each followed by its minibatch updates.
      mode: "step": one action from each drawn state (the paper's); "episode": whole
        episodes from the start of a task, with credit across their steps.
      episode_steps: actions of an episode, at most; only in mode "episode".
      states_per_update: states drawn from the pool; in mode "episode" starts.
      samples_per_state: replies (episodes) sampled for each.
      pool: where those states come from.
      num_epochs: passes over a rollout.
      minibatch_size: replies of one optimizer update.
      micro_batch_size: replies of one forward pass.
      micro_batch_tokens: cuts a minibatch by padded tokens instead, replies sorted
        by length, so that short ones do not pay for long ones; None does not.
      seq_lens: padded lengths of prompt plus reply, ascending.
      reward: the step reward.
      estimator: how rewards become advantages: "gae" (with a critic), "grpo"
        (relative to the other samples of a state) or "rloo" (leave one out).
      group_std: "grpo" divides by the standard deviation of the group.
      gamma: discount between tokens.
      gae_lambda: lambda of generalized advantage estimation.
      clip_eps: clip range of the probability ratio.
      value_model: "separate": a second model; "shared": a head on the policy.
      value_clip: clip range of the value around the old one; None does not clip.
      value_coef: weight of the value loss (a separate critic: only its scale).
      entropy_coef: weight of the entropy bonus.
      kl_coef: (initial) weight of the token-level KL penalty; 0.0 is none.
      kl: where that penalty acts and how it is estimated.
      whiten_advantages: zero mean and unit variance over a rollout's tokens; "gae"
        only, since the groups of the others have done so.
      importance_cap: bound of the weight pi_old / pi_behaviour that corrects for
        samples of another policy than the one that is updated; None is no weight.
      max_staleness: 1 collects a rollout during the update before it, with the
        policy that this update starts from; 0 does one after the other.
      duration_aware: weighs a sample by the time its script took over the batch
        mean, so that slow actions are learnt from as much as fast ones.
      duration_base_s: seconds that every action counts for besides its script.
      actor: optimizer of the policy.
      critic: optimizer of the critic.
      critic_warmup_updates: first rollouts that train only the critic.
      checkpoint_every: rollouts between checkpoints.
      keep_checkpoints: how many to keep.
      probe_every: rollouts between evaluations for the Figure-4 curve; 0 = never.
      probe_trajectories: trajectories a task in such an evaluation.
    """

    num_updates: int = 40
    mode: Literal["step", "episode"] = "step"
    episode_steps: int = 8
    states_per_update: int = 64
    samples_per_state: int = 1
    pool: PoolConfig = PoolConfig()
    num_epochs: int = 1
    minibatch_size: int = 64
    micro_batch_size: int = 64
    micro_batch_tokens: int | None = None
    seq_lens: tuple[int, ...] = (16_384,)
    reward: RewardConfig = RewardConfig()
    estimator: Literal["gae", "grpo", "rloo"] = "gae"
    group_std: bool = True
    gamma: float = 1.0
    gae_lambda: float = 1.0
    clip_eps: float = 0.2
    value_model: Literal["separate", "shared"] = "separate"
    value_clip: float | None = 0.5
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    kl_coef: float = 0.001
    kl: KlConfig = KlConfig()
    whiten_advantages: bool = True
    importance_cap: float | None = None
    max_staleness: Literal[0, 1] = 0
    duration_aware: bool = False
    duration_base_s: float = 1.0
    actor: OptimizerConfig = OptimizerConfig(peak_lr=1e-6, end_lr_frac=1.0)
    critic: OptimizerConfig = OptimizerConfig(peak_lr=1e-5, end_lr_frac=1.0)
    critic_warmup_updates: int = 0
    checkpoint_every: int = 1
    keep_checkpoints: int = 2
    probe_every: int = 5
    probe_trajectories: int = 2

    def __post_init__(self) -> None:
        self._check_batches()
        check(0 <= self.gamma <= 1, "ppo.gamma", self.gamma, "in [0, 1]")
        check(0 <= self.gae_lambda <= 1, "ppo.gae_lambda", self.gae_lambda, "in [0, 1]")
        check(self.clip_eps > 0, "ppo.clip_eps", self.clip_eps, "> 0")
        is_ok = self.value_clip is None or self.value_clip > 0
        check(is_ok, "ppo.value_clip", self.value_clip, "None or > 0")
        check(self.kl_coef >= 0, "ppo.kl_coef", self.kl_coef, ">= 0")
        check(
            self.kl.target is None or self.kl_coef > 0,
            "ppo.kl_coef",
            self.kl_coef,
            "> 0 to start from, because ppo.kl.target is set",
        )
        check(
            self.estimator == "gae" or self.samples_per_state > 1,
            "ppo.samples_per_state",
            self.samples_per_state,
            f"> 1: estimator {self.estimator!r} compares samples of a state",
        )
        check(
            self.has_critic or self.critic_warmup_updates == 0,
            "ppo.critic_warmup_updates",
            self.critic_warmup_updates,
            f"0: estimator {self.estimator!r} has no critic",
        )
        cap = self.importance_cap
        check(cap is None or cap > 0, "ppo.importance_cap", cap, "None or > 0")
        check(
            self.max_staleness == 0 or cap is not None,
            "ppo.importance_cap",
            cap,
            "a number, e.g. 2.0, because ppo.max_staleness is 1",
        )
        check(
            self.mode == "step" or self.pool.own_frac == 0,
            "ppo.pool.own_frac",
            self.pool.own_frac,
            "0: episodes start where their task starts",
        )
        base_s = self.duration_base_s
        check(base_s > 0, "ppo.duration_base_s", base_s, "> 0")

    @property
    def has_critic(self) -> bool:
        """Whether the estimator needs values."""
        return self.estimator == "gae"

    @property
    def rows_per_sample(self) -> int:
        """Replies of one sample: 1, or the steps of an episode."""
        return self.episode_steps if self.mode == "episode" else 1

    @property
    def rows_per_update(self) -> int:
        """Replies of one rollout, those of ended episodes (empty) included."""
        return self.states_per_update * self.samples_per_state * self.rows_per_sample

    def _check_batches(self) -> None:
        check(self.episode_steps >= 1, "ppo.episode_steps", self.episode_steps, ">= 1")
        check(
            self.rows_per_update % self.minibatch_size == 0,
            "ppo.minibatch_size",
            self.minibatch_size,
            f"a divisor of {self.rows_per_update} samples an update",
        )
        check(
            self.minibatch_size % self.micro_batch_size == 0,
            "ppo.micro_batch_size",
            self.micro_batch_size,
            "a divisor of minibatch_size",
        )
        tokens = self.micro_batch_tokens
        check(
            tokens is None or tokens >= self.seq_lens[-1],
            "ppo.micro_batch_tokens",
            tokens,
            f"None or at least the longest of ppo.seq_lens, {self.seq_lens[-1]}",
        )
