"""How a learner runs the models over a rollout: by rows, or by a budget of tokens.

Both kinds of passes score a rollout and carry out one minibatch update, to the same
numbers; the second needs several compiled shapes and wastes no work on padding.
"""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Sharding

from mlagent_jax.config import PpoConfig
from mlagent_jax.parallel.sharding import place
from mlagent_jax.rl.batch import PpoBatch, RolloutBatch, Scores
from mlagent_jax.rl.objective import Loss, make_losses, make_score_fn, score_rows
from mlagent_jax.rl.ppo import (
    Metrics,
    PpoOptimizers,
    PpoState,
    apply_named,
    loss_gradient,
    make_ppo_step,
    trees,
)
from mlagent_jax.rl.token_cut import Cut, cut_by_tokens, put_cut, take_cut
from mlagent_jax.train.state import Params


class Passes(Protocol):
    """What the learner needs of either kind."""

    def score(
        self,
        state: PpoState,
        ref_params: Params,
        batch: RolloutBatch,
        lengths: np.ndarray,
    ) -> Scores:
        """Returns the scores of a rollout whose rows have `lengths` tokens."""
        ...

    def step(
        self,
        state: PpoState,
        batch: PpoBatch,
        rows: np.ndarray,
        lengths: np.ndarray,
        *,
        is_warmup: bool,
    ) -> tuple[PpoState, Metrics]:
        """Returns the state after the minibatch of `rows`; `state` is used up."""
        ...


class RowPasses:
    """Micro-batches of `cfg.micro_batch_size` rows, one compiled function each.

    Args:
      graphdef: of the model.
      cfg: settings of the run.
      optimizers: of the state.
      temperature: of the sampler.
      state_shardings: where the state lives.
      replicated: placement of small arrays.
    """

    def __init__(
        self,
        graphdef: Any,
        cfg: PpoConfig,
        optimizers: PpoOptimizers,
        *,
        temperature: float,
        state_shardings: Any,
        replicated: Sharding,
    ) -> None:
        self._replicated = replicated
        self._score = make_score_fn(graphdef, cfg, temperature=temperature)
        self._take_rows = jax.jit(take_rows)
        # Indexed by "is the critic warming up?"; compiled when first called.
        self._steps = {
            is_warmup: make_ppo_step(
                graphdef,
                cfg,
                optimizers,
                temperature=temperature,
                is_warmup=is_warmup,
                state_shardings=state_shardings,
            )
            for is_warmup in (False, True)
        }

    def score(
        self,
        state: PpoState,
        ref_params: Params,
        batch: RolloutBatch,
        lengths: np.ndarray,
    ) -> Scores:
        """See `Passes`."""
        del lengths
        params = trees(state)
        return self._score(params["actor"], ref_params, params.get("critic"), batch)

    def step(
        self,
        state: PpoState,
        batch: PpoBatch,
        rows: np.ndarray,
        lengths: np.ndarray,
        *,
        is_warmup: bool,
    ) -> tuple[PpoState, Metrics]:
        """See `Passes`."""
        del lengths
        rows_B = place(rows, self._replicated)
        return self._steps[is_warmup](state, self._take_rows(batch, rows_B))


class TokenPasses:
    """Micro-batches of `cfg.micro_batch_tokens` padded tokens.

    Args:
      graphdef: of the model.
      cfg: settings of the run.
      optimizers: of the state.
      temperature: of the sampler.
      state_shardings: where the state lives.
      replicated: placement of small arrays.
      num_parts: devices that the rows of a micro-batch are split over.
    """

    def __init__(
        self,
        graphdef: Any,
        cfg: PpoConfig,
        optimizers: PpoOptimizers,
        *,
        temperature: float,
        state_shardings: Any,
        replicated: Sharding,
        num_parts: int,
    ) -> None:
        self._cfg = cfg
        self._num_parts = num_parts
        self._replicated = replicated
        self._losses = {
            is_warmup: make_losses(graphdef, cfg, temperature, is_warmup=is_warmup)
            for is_warmup in (False, True)
        }
        score = score_rows(graphdef, cfg, temperature)

        @functools.partial(jax.jit, static_argnums=6, donate_argnums=4)
        def score_cut(
            actor: Params,
            ref: Params,
            critic: Params,
            batch: RolloutBatch,
            scores: Scores,
            rows_R: Array,
            seq_len: int,
        ) -> Scores:
            micro = take_cut(batch, rows_R, seq_len)
            return put_cut(scores, score(actor, ref, critic, micro), rows_R, seq_len)

        @functools.partial(jax.jit, static_argnums=(0, 7), donate_argnums=1)
        def add_cut(
            loss: Loss,
            total: dict[str, Params],
            params: dict[str, Params],
            batch: PpoBatch,
            num_tokens: Array,
            kl_coef: Array,
            rows_R: Array,
            seq_len: int,
        ) -> tuple[dict[str, Params], Metrics]:
            micro = take_cut(batch, rows_R, seq_len)
            grads, metrics = loss_gradient(loss, params, micro, num_tokens, kl_coef)
            return jax.tree.map(jnp.add, total, grads), metrics

        self._score_cut = score_cut
        self._add_cut = add_cut
        self._zeros = jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree))
        self._count = jax.jit(lambda mask_BT, rows_B: mask_BT[rows_B].sum())
        self._apply = jax.jit(
            lambda state, grads: apply_named(state, grads, optimizers),
            donate_argnums=0,
            out_shardings=(state_shardings, None),
        )

    def score(
        self,
        state: PpoState,
        ref_params: Params,
        batch: RolloutBatch,
        lengths: np.ndarray,
    ) -> Scores:
        """See `Passes`."""
        params = trees(state)
        scores = Scores(*(jnp.zeros_like(batch.behavior_logprobs_BT) for _ in range(3)))
        for rows_R, seq_len in self._cuts(lengths, np.arange(len(lengths))):
            scores = self._score_cut(
                params["actor"],
                ref_params,
                params.get("critic"),
                batch,
                scores,
                rows_R,
                seq_len,
            )
        return scores

    def step(
        self,
        state: PpoState,
        batch: PpoBatch,
        rows: np.ndarray,
        lengths: np.ndarray,
        *,
        is_warmup: bool,
    ) -> tuple[PpoState, Metrics]:
        """See `Passes`."""
        rows_B = place(rows, self._replicated)
        num_tokens = self._count(batch.response_mask_BT, rows_B)
        cuts = self._cuts(lengths, rows)
        metrics: Metrics = {"num_micro_batches": jnp.float32(len(cuts))}
        for loss in self._losses[is_warmup]:
            params = trees(state)
            total = self._zeros({name: params[name] for name in loss.trains})
            for rows_R, seq_len in cuts:
                total, part = self._add_cut(
                    loss,
                    total,
                    params,
                    batch,
                    num_tokens,
                    state.kl_coef,
                    rows_R,
                    seq_len,
                )
                for name, value in part.items():
                    metrics[name] = metrics.get(name, jnp.float32(0)) + value
            state, norms = self._apply(state, total)
            metrics |= norms
        return state, metrics

    def _cuts(self, lengths: np.ndarray, rows: np.ndarray) -> list[tuple[Array, int]]:
        assert self._cfg.micro_batch_tokens is not None
        cuts: list[Cut] = cut_by_tokens(
            lengths,
            rows,
            seq_lens=self._cfg.seq_lens,
            max_tokens=self._cfg.micro_batch_tokens,
            multiple=self._num_parts,
        )
        return [(place(cut.rows, self._replicated), cut.seq_len) for cut in cuts]


def take_rows(batch: PpoBatch, rows_B: Array) -> PpoBatch:
    """Returns the minibatch of the rows with the given indices."""
    return jax.tree.map(lambda x: x[rows_B], batch)
