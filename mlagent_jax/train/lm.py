"""Maximum likelihood on marked tokens: the update and the loop of pretrain and sft.

`make_lm_step` and `make_lm_eval` return jitted pure functions; `run_lm` calls them,
with progress, metrics, evaluation and checkpoints, and continues where an earlier
process stopped. What is learnt from what is the business of the stages.

Axis letters: A micro-batches that accumulate one gradient, B rows, T tokens.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import grain
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, Sharding

from mlagent_jax.config import OptimizerConfig
from mlagent_jax.data.pipeline import SftBatch
from mlagent_jax.errors import ConfigError, DivergedError
from mlagent_jax.model.logprobs import weighted_logprobs
from mlagent_jax.parallel.sharding import batch_sharding, place, tree_shardings
from mlagent_jax.train.checkpoint import Checkpoints
from mlagent_jax.train.metrics import MetricsWriter
from mlagent_jax.train.optimizer import make_optimizer, make_schedule
from mlagent_jax.train.state import Params, TrainState, apply_gradients, init_state
from mlagent_jax.train.stopping import StopSignal

Metrics = dict[str, Array]
LmStep = Callable[[TrainState, SftBatch], tuple[TrainState, Metrics]]
LmEval = Callable[[Params, SftBatch], Metrics]

# Updates between looks at the metrics; each look waits for the device.
_READ_EVERY = 10


class ProgressBar(Protocol):
    """What a stage tells its user; tqdm's bars are of this kind."""

    def update(self, n: float | None = 1) -> object:
        """Counts `n` more units as done."""
        ...

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Shows a short text behind the bar."""
        ...


# (total, description, unit, already done) -> bar
Progress = Callable[[int, str, str, int], AbstractContextManager[ProgressBar]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LmRun:
    """One stage of maximum-likelihood training.

    Attributes:
      name: shown on the progress bar.
      directory: gets checkpoints/ and the metrics.
      graphdef: of the model.
      abstract_params: its parameters as `jax.ShapeDtypeStruct`s.
      mesh: devices.
      optimizer: its settings.
      num_updates: length of the stage.
      micro_batches: A; divides the rows of a batch.
      batches: the batch of update i at index i; at least `num_updates` long.
      eval_batches: data of the evaluation loss; empty for no evaluation.
      eval_every: updates between evaluations and checkpoints.
      keep_checkpoints: how many to keep, the one with the lowest evaluation loss
        besides.
      identity: JSON values that must not change when the stage is resumed.
    """

    name: str
    directory: Path
    graphdef: Any
    abstract_params: Params
    mesh: Mesh
    optimizer: OptimizerConfig
    num_updates: int
    micro_batches: int
    batches: grain.MapDataset[SftBatch]
    eval_batches: Iterable[SftBatch] = ()
    eval_every: int
    keep_checkpoints: int
    identity: Mapping[str, Any]


def make_lm_step(
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    *,
    micro_batches: int,
    state_shardings: Any = None,
    rows_sharding: Sharding | None = None,
) -> LmStep:
    """Returns a function (state, batch) -> (state, metrics); state is donated.

    The loss is the mean negative log-likelihood over the marked tokens of the whole
    batch, whatever its division into micro-batches:
    L(theta) = -sum_bt mask_bt log p(token_bt | tokens_b,<t) / sum_bt mask_bt
    (paper A.3, there a sum over replies). Metrics: `loss`, `grad_norm` before
    clipping, `accuracy` (see `make_lm_eval`) and `num_tokens`.

    Args:
      graphdef: of the model.
      optimizer: made `state.opt_state`.
      micro_batches: A, forward and backward passes that make one update.
      state_shardings: where the state lives; None leaves it where it is.
      rows_sharding: how the rows of a batch are split.
    """

    def loss_fn(
        params: Params, batch: SftBatch, num_tokens: Array
    ) -> tuple[Array, Array]:
        return _likelihood_sums(graphdef, params, batch, num_tokens)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def step(state: TrainState, batch: SftBatch) -> tuple[TrainState, Metrics]:
        num_tokens = jnp.maximum(jnp.sum(batch.loss_mask_BT), 1.0)

        def add(total: Any, micro: SftBatch) -> tuple[Any, None]:
            part = grad_fn(state.params, micro, num_tokens)
            return jax.tree.map(jnp.add, total, part), None

        if micro_batches == 1:
            (loss, accuracy), grads = grad_fn(state.params, batch, num_tokens)
        else:
            parts_ABT = jax.tree.map(lambda x: _split_rows(x, micro_batches), batch)
            zero = jnp.zeros((), jnp.float32)
            start = (zero, zero), jax.tree.map(jnp.zeros_like, state.params)
            ((loss, accuracy), grads), _ = jax.lax.scan(add, start, parts_ABT)
        metrics = {
            "loss": loss,
            "accuracy": accuracy,
            "grad_norm": optax.tree.norm(grads),
            "num_tokens": num_tokens,
        }
        return apply_gradients(state, grads, optimizer), metrics

    return jax.jit(
        step,
        in_shardings=(state_shardings, rows_sharding),
        out_shardings=(state_shardings, None),
        donate_argnums=0,
    )


def make_lm_eval(graphdef: Any) -> LmEval:
    """Returns a function (params, batch) -> sums over the marked tokens.

    They are `loss` (negative log-likelihood), `accuracy` (tokens that are given more
    than half of the probability: a lower bound of what greedy decoding gets right,
    at no further cost) and `num_tokens`.
    """

    def evaluate(params: Params, batch: SftBatch) -> Metrics:
        loss_sum, num_hits = _likelihood_sums(graphdef, params, batch)
        num_tokens = jnp.sum(batch.loss_mask_BT)
        return {"loss": loss_sum, "accuracy": num_hits, "num_tokens": num_tokens}

    return jax.jit(evaluate)


def run_lm(
    run: LmRun,
    initial_params: Callable[[], Params],
    progress: Progress,
    stop: StopSignal | None = None,
) -> TrainState:
    """Trains to the end of the stage, from its newest checkpoint if there is one.

    Stopped at any moment and called again with the same arguments, it ends with the
    same state, bit for bit. The last update is always saved.

    Args:
      run: the stage.
      initial_params: makes the parameters of a stage that starts anew; their
        buffers are used up.
      progress: makes progress bars.
      stop: ends the stage after the update at hand; None for never.

    Raises:
      ConfigError: the directory holds checkpoints of other settings.
      CheckpointError: checkpoints are unusable, or one could not be written.
      DivergedError: loss or gradient is not finite; checkpoints from before it stay.
      RunInterruptedError: `stop` was set; the state is saved.
    """
    optimizer = make_optimizer(run.optimizer, run.num_updates)
    abstract_state = abstract_on_mesh(
        jax.eval_shape(lambda p: init_state(p, optimizer), run.abstract_params),
        run.mesh,
    )
    with (
        jax.set_mesh(run.mesh),
        Checkpoints(
            run.directory / "checkpoints", run.keep_checkpoints, best_metric="loss"
        ) as checkpoints,
    ):
        batches = iter(run.batches)
        restored = checkpoints.restore_latest(abstract_state)
        if restored is None:
            make_state = jax.jit(
                lambda params: init_state(params, optimizer),
                out_shardings=jax.tree.map(lambda x: x.sharding, abstract_state),
                donate_argnums=0,
            )
            state, first = make_state(initial_params()), 0
        else:
            state, first = restored.tree, restored.step
            _check_resumed(run, first, restored.meta)
            batches.set_state(restored.meta["data"])
        with (
            MetricsWriter(run.directory, first) as writer,
            progress(run.num_updates, run.name, "update", first) as bar,
        ):
            return _train(
                run,
                optimizer,
                state,
                batches,
                checkpoints,
                writer,
                bar,
                stop or StopSignal(),
            )


def _train(
    run: LmRun,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batches: grain.DatasetIterator[SftBatch],
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    bar: ProgressBar,
    stop: StopSignal,
) -> TrainState:
    """Returns the state after the last update; the loop of `run_lm`.

    Raises:
      RunInterruptedError: `stop` was set; the state is saved.
    """
    rows_sharding = batch_sharding(run.mesh)
    step_fn = make_lm_step(
        run.graphdef,
        optimizer,
        micro_batches=run.micro_batches,
        state_shardings=jax.tree.map(lambda x: x.sharding, state),
        rows_sharding=rows_sharding,
    )
    eval_fn = make_lm_eval(run.graphdef)
    unread: list[tuple[int, Metrics]] = []
    for done in range(int(jax.device_get(state.step)) + 1, run.num_updates + 1):
        state, metrics = step_fn(state, place(next(batches), rows_sharding))
        unread.append((done, metrics))
        bar.update(1)
        is_eval = done % run.eval_every == 0 or done == run.num_updates
        is_stop = stop.is_set() and done < run.num_updates
        if is_eval or is_stop or len(unread) == _READ_EVERY:
            loss = _write_metrics(run, writer, unread)
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            unread = []
        scores: dict[str, float] = {}
        if is_eval:
            scores = _evaluate(run, eval_fn, state.params, rows_sharding)
            if scores:
                writer.write(done, {f"eval/{k}": v for k, v in scores.items()})
        if is_eval or is_stop:
            meta = {"data": batches.get_state(), "identity": run.identity}
            checkpoints.save(done, state, meta, scores or {"loss": math.inf})
        if is_stop:
            checkpoints.wait()
            raise stop.error(f"{run.name} after update {done} of {run.num_updates}")
    checkpoints.wait()
    return state


def abstract_on_mesh(abstract: Any, mesh: Mesh) -> Any:
    """Returns the `jax.ShapeDtypeStruct`s of a tree with their place on `mesh`."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        abstract,
        tree_shardings(mesh, abstract),
    )


def _likelihood_sums(
    graphdef: Any, params: Params, batch: SftBatch, num_tokens: Array | float = 1.0
) -> tuple[Array, Array]:
    """Returns (negative log-likelihood, tokens above probability 1/2) / num_tokens."""
    weights_BT = jnp.asarray(batch.loss_mask_BT) / num_tokens
    total, logprobs_BT = weighted_logprobs(
        graphdef,
        params,
        batch.tokens_BT,
        batch.positions_BT,
        batch.segment_ids_BT,
        weights_BT,
    )
    num_hits = jnp.sum((logprobs_BT > math.log(0.5)) * weights_BT)
    return -total, num_hits


def _split_rows(x_BT: Any, num_parts: int) -> Array:
    """Returns (A, B / A, T); part a has the rows a, a + A, ...

    Dealing rows out like cards keeps every part spread over all devices.
    """
    rows, width = x_BT.shape
    return x_BT.reshape(rows // num_parts, num_parts, width).swapaxes(0, 1)


def _check_resumed(run: LmRun, step: int, meta: Mapping[str, Any]) -> None:
    saved, ours = meta["identity"], dict(run.identity)
    changed = sorted(k for k in saved | ours if saved.get(k) != ours.get(k))
    if changed:
        lines = [f"  {k}: {saved.get(k)} -> {ours.get(k)}" for k in changed]
        raise ConfigError(
            f"{run.directory} was trained to update {step} with other settings:\n"
            + "\n".join(lines)
            + "\nremove that folder to train anew, or use another --workdir"
        )


def _write_metrics(
    run: LmRun,
    writer: MetricsWriter,
    unread: list[tuple[int, Metrics]],
) -> float:
    """Writes the metrics of the last updates and returns their mean loss.

    Raises:
      DivergedError: one of them is not finite.
    """
    schedule = make_schedule(run.optimizer, run.num_updates)
    values = jax.device_get([metrics for _, metrics in unread])
    for (step, _), metrics in zip(unread, values, strict=True):
        if not all(math.isfinite(metrics[k]) for k in ("loss", "grad_norm")):
            last_save = (step - 1) // run.eval_every * run.eval_every
            raise DivergedError(
                f"{run.name}: loss {metrics['loss']}, gradient norm "
                f"{metrics['grad_norm']} at update {step} (seen among updates "
                f"{unread[0][0]} to {unread[-1][0]}); the checkpoint of update "
                f"{last_save} in {run.directory} is kept. Lower optimizer.peak_lr or "
                "optimizer.clip_norm"
            )
        learning_rate = jax.device_get(schedule(step - 1))
        record = {f"train/{k}": v for k, v in metrics.items()}
        writer.write(step, record | {"train/learning_rate": learning_rate})
    return sum(float(metrics["loss"]) for metrics in values) / len(values)


def _evaluate(
    run: LmRun, eval_fn: LmEval, params: Params, rows_sharding: Sharding
) -> dict[str, float]:
    """Returns mean loss and accuracy over the evaluation data; empty without any."""
    sums = [eval_fn(params, place(batch, rows_sharding)) for batch in run.eval_batches]
    if not sums:
        return {}
    totals = {k: sum(float(s[k]) for s in jax.device_get(sums)) for k in sums[0]}
    num_tokens = max(totals.pop("num_tokens"), 1.0)
    return {k: v / num_tokens for k, v in totals.items()}
