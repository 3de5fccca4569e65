"""The arrays of one PPO update, and the host function that lays samples out in them.

A row is one sample: the prompt of a state, the reply to it, padding to a length
from a short list (`ppo.seq_lens`) so that few shapes are ever compiled. The number
of rows is fixed too: a dropped sample leaves a row of zeros whose mask is empty.
A row belongs to one sample alone, so no advantage can land on another's tokens.
A step of an episode is a row as well; its rows follow each other, and those behind
its end are empty.

Axis letters: B samples of one update, T token positions.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from mlagent_jax.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSample:
    """One sampled reply as tokens; a host record.

    Attributes:
      prompt: token ids of the state's prompt, at least one.
      reply: sampled token ids, the end-of-turn token included if it was sampled.
      logprobs: behaviour log-probability of each token of `reply`.
      reward: step reward.
      duration_s: seconds that the action counts for in duration-aware updates.
    """

    prompt: Sequence[int]
    reply: Sequence[int]
    logprobs: Sequence[float]
    reward: float
    duration_s: float = 0.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutBatch:
    """What the rollout knows, one row a sample.

    Entry t is about token t, given the tokens before it. A prompt [7, 8] and the
    reply [5, 6, 2] (2 = end of turn) with reward 0.7, padded to T = 6, become

        tokens_BT             7    8    5    6    2    0
        positions_BT          0    1    2    3    4    0
        segment_ids_BT        1    1    1    1    1    0
        response_mask_BT      0    0    1    1    1    0
        behavior_logprobs_BT  0    0  -.4  -.1  -.2    0
        rewards_B           0.7
        durations_B         3.2

    Attributes:
      tokens_BT: int32 token ids; 0 on padding.
      positions_BT: int32, index in the row; 0 on padding.
      segment_ids_BT: int32, 1 on the sample and 0 on padding.
      response_mask_BT: float32, 1.0 on tokens that the policy chose, the
        end-of-turn token among them; 0.0 on prompt and padding.
      behavior_logprobs_BT: float32, log-probability of each chosen token as the
        sampler reported it; 0.0 elsewhere.
      rewards_B: float32 step reward; 0.0 for a dropped sample.
      durations_B: float32 seconds of the action; 0.0 for a dropped sample.
    """

    tokens_BT: Array
    positions_BT: Array
    segment_ids_BT: Array
    response_mask_BT: Array
    behavior_logprobs_BT: Array
    rewards_B: Array
    durations_B: Array


class Scores(NamedTuple):
    """What the trainer's models say about a rollout, see `PpoBatch`."""

    old_logprobs_BT: Array
    ref_logprobs_BT: Array
    values_BT: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoBatch(RolloutBatch):
    """A rollout batch with what the update needs besides; all float32.

    Continuing the example of `RolloutBatch`, without KL, γ = λ = 1 and before
    whitening:

        old_logprobs_BT       0    0  -.4  -.1  -.2    0
        ref_logprobs_BT       0    0  -.5  -.1  -.2    0
        values_BT             0    0   .4   .5   .6    0
        advantages_BT         0    0   .3   .2   .1    0
        returns_BT            0    0   .7   .7   .7    0

    Attributes:
      old_logprobs_BT: of the policy before the update, computed by the trainer.
      ref_logprobs_BT: of the frozen reference; equal to `old_logprobs_BT` if the
        run has no KL penalty.
      values_BT: the critic's value of the state before each chosen token; 0.0
        without a critic.
      advantages_BT: of each chosen token, importance and duration weights included.
      returns_BT: the critic's target for each chosen token.
    """

    old_logprobs_BT: Array
    ref_logprobs_BT: Array
    values_BT: Array
    advantages_BT: Array
    returns_BT: Array


def pad_samples(
    samples: Sequence[TokenSample | None], seq_lens: Sequence[int]
) -> RolloutBatch:
    """Returns the samples as numpy arrays, each in the row of its index.

    Args:
      samples: one a row; None for a dropped sample, whose row stays empty.
      seq_lens: lengths to pad to, ascending; the shortest that fits is used.

    Raises:
      DataError: a sample does not fit into the longest length, has no prompt or
        no reply, another number of log-probabilities than of reply tokens, or a
        reward that is not finite.
    """
    for index, sample in enumerate(samples):
        if sample is not None:
            _check_sample(index, sample, seq_lens[-1])
    longest = max((len(s.prompt) + len(s.reply) for s in samples if s), default=0)
    seq_len = next(length for length in seq_lens if length >= longest)
    shape = (len(samples), seq_len)
    tokens_BT = np.zeros(shape, np.int32)
    positions_BT = np.zeros(shape, np.int32)
    segment_ids_BT = np.zeros(shape, np.int32)
    response_mask_BT = np.zeros(shape, np.float32)
    behavior_logprobs_BT = np.zeros(shape, np.float32)
    rewards_B = np.zeros(len(samples), np.float32)
    durations_B = np.zeros(len(samples), np.float32)
    for row, sample in enumerate(samples):
        if sample is None:
            continue
        start = len(sample.prompt)
        end = start + len(sample.reply)
        tokens_BT[row, :start] = sample.prompt
        tokens_BT[row, start:end] = sample.reply
        positions_BT[row, :end] = np.arange(end)
        segment_ids_BT[row, :end] = 1
        response_mask_BT[row, start:end] = 1.0
        behavior_logprobs_BT[row, start:end] = sample.logprobs
        rewards_B[row] = sample.reward
        durations_B[row] = sample.duration_s
    # Numpy on purpose: the caller decides where and how the rows are placed.
    arrays: dict[str, Any] = dict(
        tokens_BT=tokens_BT,
        positions_BT=positions_BT,
        segment_ids_BT=segment_ids_BT,
        response_mask_BT=response_mask_BT,
        behavior_logprobs_BT=behavior_logprobs_BT,
        rewards_B=rewards_B,
        durations_B=durations_B,
    )
    return RolloutBatch(**arrays)


def _check_sample(index: int, sample: TokenSample, max_len: int) -> None:
    length = len(sample.prompt) + len(sample.reply)
    if not sample.prompt or not sample.reply:
        raise DataError(
            f"sample {index}: expected prompt and reply tokens, got "
            f"{len(sample.prompt)} and {len(sample.reply)}"
        )
    if len(sample.logprobs) != len(sample.reply):
        raise DataError(
            f"sample {index}: {len(sample.logprobs)} log-probabilities for "
            f"{len(sample.reply)} reply tokens"
        )
    if not math.isfinite(sample.reward):
        raise DataError(f"sample {index}: reward {sample.reward}")
    if length > max_len:
        raise DataError(
            f"sample {index}: {length} tokens, but the longest of ppo.seq_lens is "
            f"{max_len}"
        )
