"""The update of pretrain and sft: what it maximises, whatever the division of work."""

import contextlib
import dataclasses

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlagent_jax.config import MeshConfig, OptimizerConfig
from mlagent_jax.data.examples import TokenExample
from mlagent_jax.data.packing import pack_rows
from mlagent_jax.data.pipeline import SftBatch, fill_batch
from mlagent_jax.errors import ConfigError, DivergedError
from mlagent_jax.model import qwen2
from mlagent_jax.parallel.mesh import make_mesh
from mlagent_jax.parallel.sharding import batch_sharding, tree_shardings
from mlagent_jax.train.lm import (
    LmRun,
    make_lm_eval,
    make_lm_step,
    place,
    run_lm,
)
from mlagent_jax.train.metrics import read_metrics
from mlagent_jax.train.optimizer import make_optimizer
from mlagent_jax.train.state import init_state

OPTIMIZER = OptimizerConfig(peak_lr=1e-2)


def make_batch(seed: int, rows: int = 8, length: int = 12) -> SftBatch:
    rng = np.random.default_rng(seed)
    shape = (rows, length)
    lengths_B = rng.integers(4, length + 1, rows)
    is_token_BT = np.arange(length) < lengths_B[:, None]
    mask_BT = is_token_BT & (rng.random(shape) < 0.5)
    mask_BT[:, 0] = False
    return SftBatch(
        tokens_BT=rng.integers(0, 64, shape).astype(np.int32),
        positions_BT=np.broadcast_to(np.arange(length, dtype=np.int32), shape).copy(),
        segment_ids_BT=is_token_BT.astype(np.int32),
        loss_mask_BT=mask_BT.astype(np.float32),
    )


@contextlib.contextmanager
def no_progress(total, desc, unit, initial=0):
    class Bar:
        def update(self, n=1):
            pass

        def set_postfix_str(self, s="", refresh=True):
            pass

    yield Bar()


def copy_of(params):
    """Parameters that training may use up."""
    return jax.tree.map(jnp.copy, params)


def take_step(config, params, batch, *, micro_batches=1, mesh=None):
    """Returns (metrics, parameters) after one update in the gradient's direction."""
    optimizer = optax.sgd(0.1)  # Adam's first update would magnify rounding errors
    state = init_state(copy_of(params), optimizer)
    kwargs = {}
    if mesh is not None:
        shardings, rows = tree_shardings(mesh, state), batch_sharding(mesh)
        state, batch = jax.device_put(state, shardings), place(batch, rows)
        kwargs = {"state_shardings": shardings, "rows_sharding": rows}
    graphdef = qwen2.make_graphdef(config)
    step = make_lm_step(graphdef, optimizer, micro_batches=micro_batches, **kwargs)
    state, metrics = step(state, batch)
    return jax.device_get(metrics), jax.device_get(state.params)


def assert_close(ours, theirs) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


def test_packed_examples_have_the_loss_and_gradient_of_rows_of_their_own(
    tiny_config, tiny_params
):
    rng = np.random.default_rng(0)
    examples = [
        TokenExample(
            name=f"{i}@0",
            tokens_T=rng.integers(0, 64, length).astype(np.int32),
            loss_mask_T=np.arange(length) >= length // 2,
        )
        for i, length in enumerate((9, 5, 12, 3, 7, 4))
    ]
    alone = fill_batch([[e] for e in examples], num_rows=6, seq_len=12, pad_id=0)
    rows = pack_rows([len(e.tokens_T) for e in examples], 24)
    assert len(rows) == 2
    packed = fill_batch(
        [[examples[i] for i in row] for row in rows], num_rows=2, seq_len=24, pad_id=0
    )
    ours, our_params = take_step(tiny_config, tiny_params, packed)
    theirs, their_params = take_step(tiny_config, tiny_params, alone)
    assert ours["num_tokens"] == theirs["num_tokens"]
    np.testing.assert_allclose(ours["loss"], theirs["loss"], atol=1e-6)
    assert_close(our_params, their_params)


def test_the_loss_is_the_mean_over_the_marked_tokens(tiny_config, tiny_params):
    batch = make_batch(0)
    metrics, _ = take_step(tiny_config, tiny_params, batch)
    graphdef = qwen2.make_graphdef(tiny_config)
    hidden_BTD = qwen2.forward(
        graphdef,
        tiny_params,
        batch.tokens_BT,
        batch.positions_BT,
        segment_ids_BT=batch.segment_ids_BT,
    )
    logits_BTV = qwen2.unembed(graphdef, tiny_params, hidden_BTD)
    logprobs_BTV = np.asarray(jax.nn.log_softmax(logits_BTV))
    total = sum(
        logprobs_BTV[b, t - 1, batch.tokens_BT[b, t]]
        for b, t in np.argwhere(batch.loss_mask_BT)
    )
    num_tokens = batch.loss_mask_BT.sum()
    assert metrics["num_tokens"] == num_tokens
    np.testing.assert_allclose(metrics["loss"], -total / num_tokens, rtol=1e-5)


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_accumulation_does_not_change_the_update(
    tiny_config, tiny_params, micro_batches
):
    batch = make_batch(1)  # rows have different numbers of marked tokens
    whole = take_step(tiny_config, tiny_params, batch)
    parts = take_step(tiny_config, tiny_params, batch, micro_batches=micro_batches)
    for name in ("loss", "grad_norm", "accuracy", "num_tokens"):
        np.testing.assert_allclose(whole[0][name], parts[0][name], rtol=1e-5)
    assert_close(whole[1], parts[1])


def test_one_and_eight_devices_make_the_same_update(tiny_config, tiny_params):
    batch = make_batch(2)
    alone = take_step(tiny_config, tiny_params, batch)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    spread = take_step(tiny_config, tiny_params, batch, micro_batches=2, mesh=mesh)
    np.testing.assert_allclose(alone[0]["loss"], spread[0]["loss"], rtol=1e-5)
    assert_close(alone[1], spread[1])


def test_unmarked_tokens_and_padding_rows_do_not_matter(tiny_config, tiny_params):
    batch = make_batch(3)
    padded = jax.tree.map(lambda x: np.pad(x, ((0, 2), (0, 3))), batch)
    ours = take_step(tiny_config, tiny_params, batch)
    theirs = take_step(tiny_config, tiny_params, padded)
    np.testing.assert_allclose(ours[0]["loss"], theirs[0]["loss"], rtol=1e-5)
    np.testing.assert_allclose(ours[0]["grad_norm"], theirs[0]["grad_norm"], rtol=1e-4)


def test_a_batch_without_a_marked_token_changes_nothing(tiny_config, tiny_params):
    batch = make_batch(4)
    batch = dataclasses.replace(batch, loss_mask_BT=np.zeros_like(batch.loss_mask_BT))
    metrics, params = take_step(tiny_config, tiny_params, batch)
    assert metrics["loss"] == 0.0
    assert metrics["grad_norm"] == 0.0
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(tiny_params))


def test_repeating_an_update_drives_the_loss_down_and_accuracy_up(
    tiny_config, tiny_params
):
    optimizer = make_optimizer(OPTIMIZER, 100)
    graphdef = qwen2.make_graphdef(tiny_config)
    step = make_lm_step(graphdef, optimizer, micro_batches=1)
    state = init_state(copy_of(tiny_params), optimizer)
    batch = make_batch(5)
    for _ in range(60):
        state, metrics = step(state, batch)
    sums = make_lm_eval(graphdef)(state.params, batch)
    assert float(metrics["loss"]) < 0.5
    assert float(sums["accuracy"] / sums["num_tokens"]) > 0.8
    assert float(sums["num_tokens"]) == batch.loss_mask_BT.sum()


def make_run(tmp_path, config, **changes) -> LmRun:
    run = LmRun(
        name="toy",
        directory=tmp_path / "toy",
        graphdef=qwen2.make_graphdef(config),
        abstract_params=qwen2.abstract_params(config),
        mesh=make_mesh(MeshConfig(fsdp=1), devices=jax.devices()[:1]),
        optimizer=OPTIMIZER,
        num_updates=12,
        micro_batches=1,
        batches=grain.MapDataset.range(12).map(make_batch),
        eval_batches=[make_batch(100)],
        eval_every=5,
        keep_checkpoints=2,
        identity={"seed": 0},
    )
    return dataclasses.replace(run, **changes)


class StopHereError(Exception):
    """Stands for anything that ends a process."""


def stop_at(index: int, stop: int) -> SftBatch:
    if index == stop:
        raise StopHereError
    return make_batch(index)


@pytest.mark.parametrize("stop", [0, 8])
def test_a_stopped_run_continues_to_the_same_parameters(
    tmp_path, tiny_config, tiny_params, stop
):
    def start():
        return copy_of(tiny_params)

    straight = run_lm(make_run(tmp_path / "a", tiny_config), start, no_progress)
    broken = grain.MapDataset.range(12).map(lambda i: stop_at(i, stop))
    with pytest.raises(StopHereError):
        run_lm(
            make_run(tmp_path / "b", tiny_config, batches=broken), start, no_progress
        )
    resumed = run_lm(make_run(tmp_path / "b", tiny_config), start, no_progress)
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)
    ours, theirs = (read_metrics(tmp_path / x / "toy") for x in "ab")
    assert ours == theirs
    assert [r["step"] for r in ours if "eval/loss" in r] == [5, 10, 12]


def test_a_finished_run_is_read_and_not_repeated(tmp_path, tiny_config, tiny_params):
    run = make_run(tmp_path, tiny_config)
    done = run_lm(run, lambda: copy_of(tiny_params), no_progress)
    again = run_lm(run, lambda: pytest.fail("started anew"), no_progress)
    jax.tree.map(np.testing.assert_array_equal, done, again)


def test_other_settings_do_not_continue_a_run(tmp_path, tiny_config, tiny_params):
    run_lm(make_run(tmp_path, tiny_config), lambda: copy_of(tiny_params), no_progress)
    other = make_run(tmp_path, tiny_config, identity={"seed": 1})
    with pytest.raises(ConfigError, match="seed: 0 -> 1"):
        run_lm(other, lambda: copy_of(tiny_params), no_progress)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_update(
    tmp_path, tiny_config, tiny_params
):
    def poisoned(index: int) -> SftBatch:
        batch = make_batch(index)
        if index == 7:
            return dataclasses.replace(batch, loss_mask_BT=batch.loss_mask_BT * np.nan)
        return batch

    run = make_run(
        tmp_path, tiny_config, batches=grain.MapDataset.range(12).map(poisoned)
    )
    with pytest.raises(DivergedError, match=r"at update 8 .* checkpoint of update 5"):
        run_lm(run, lambda: copy_of(tiny_params), no_progress)
    repaired = make_run(tmp_path, tiny_config)
    state = run_lm(repaired, lambda: pytest.fail("started anew"), no_progress)
    assert int(state.step) == 12
