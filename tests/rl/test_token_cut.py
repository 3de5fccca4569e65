"""Micro-batches by tokens: what they hold, and that no cut changes an update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlagent_jax.config import PpoConfig
from mlagent_jax.model import qwen2
from mlagent_jax.model.critic import init_critic, init_value_head
from mlagent_jax.rl.batch import pad_samples
from mlagent_jax.rl.estimate import make_estimate_fn
from mlagent_jax.rl.passes import RowPasses, TokenPasses
from mlagent_jax.rl.ppo import PpoOptimizers, init_ppo_state
from mlagent_jax.rl.token_cut import cut_by_tokens, row_lengths
from tests.rl.bandit import MODEL, make_policy_params
from tests.rl.test_ppo import NUM_ROWS, assert_trees_close, make_samples

OPTIMIZERS = PpoOptimizers(actor=optax.sgd(0.1), critic=optax.sgd(0.1))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("multiple", [1, 2, 8])
def test_a_cut_holds_every_row_once_within_its_budget(seed, multiple):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 65, 50)
    rows = rng.permutation(50)[:30]
    seq_lens = (8, 16, 64)
    cuts = cut_by_tokens(
        lengths, rows, seq_lens=seq_lens, max_tokens=256, multiple=multiple
    )
    held = np.concatenate([cut.rows for cut in cuts])
    assert sorted(held[held < 50]) == sorted(r for r in rows if lengths[r] > 0)
    for cut in cuts:
        assert len(cut.rows) % multiple == 0
        assert len(cut.rows) * cut.seq_len <= max(256, multiple * cut.seq_len)
        assert max(lengths[r] for r in cut.rows if r < 50) <= cut.seq_len
    # Few shapes: one for each padded length; only the last micro-batch has holes.
    assert len({(len(c.rows), c.seq_len) for c in cuts}) <= len(seq_lens)
    assert all(np.all(c.rows < 50) for c in cuts[:-1])


def test_sorted_rows_cost_fewer_padded_tokens_than_whole_rows():
    lengths = np.array([60, 5, 6, 4, 7, 8, 3, 5])
    cuts = cut_by_tokens(
        lengths, np.arange(8), seq_lens=(8, 64), max_tokens=64, multiple=1
    )
    assert sum(len(c.rows) * c.seq_len for c in cuts) == 64 + 64
    assert [c.seq_len for c in cuts] == [64, 8]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"value_model": "shared", "entropy_coef": 0.1},
        {"estimator": "grpo", "samples_per_state": 2, "states_per_update": 4},
    ],
    ids=["separate", "shared", "grpo"],
)
def test_cutting_by_tokens_changes_no_update(changes):
    settings = {
        "states_per_update": NUM_ROWS, "minibatch_size": NUM_ROWS,
        "micro_batch_size": NUM_ROWS, "kl_coef": 0.1, "seq_lens": (6, 12),
    }  # fmt: skip
    cfg = PpoConfig(**(settings | changes))
    graphdef = qwen2.make_graphdef(MODEL)
    samples = [*make_samples(NUM_ROWS - 1), None]
    batch = pad_samples(samples, (12,))
    lengths = row_lengths(batch.segment_ids_BT)
    batch = jax.tree.map(jnp.array, batch)
    place = {
        "temperature": 1.0,
        "state_shardings": None,
        "replicated": jax.sharding.SingleDeviceSharding(jax.devices()[0]),
    }
    results = []
    for passes in (
        RowPasses(graphdef, cfg, OPTIMIZERS, **place),
        TokenPasses(
            graphdef,
            PpoConfig(**(settings | changes | {"micro_batch_tokens": 12})),
            OPTIMIZERS,
            **place,
            num_parts=2,
        ),
    ):
        state = init_ppo_state(
            make_policy_params(seed=2),
            make_critic(cfg),
            OPTIMIZERS,
            kl_coef=cfg.kl_coef,
        )
        ref_params = make_policy_params(seed=1)
        scores = passes.score(state, ref_params, batch, lengths)
        ppo_batch, _ = make_estimate_fn(cfg)(batch, scores, state.kl_coef)
        order = np.random.default_rng(0).permutation(NUM_ROWS).astype(np.int32)
        results.append(passes.step(state, ppo_batch, order, lengths, is_warmup=False))
    (state, metrics), (cut_state, cut_metrics) = results
    assert cut_metrics.pop("num_micro_batches") > 2
    assert_trees_close(cut_state, state, atol=1e-6)
    assert_trees_close(cut_metrics, metrics, atol=1e-5)


def make_critic(cfg):
    key = jax.random.key(3)
    if not cfg.has_critic:
        return None
    if cfg.value_model == "shared":
        return init_value_head(MODEL, key)
    return init_critic(MODEL, make_policy_params(seed=2), key)
