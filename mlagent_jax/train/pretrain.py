"""Copying practice: what stands in for pretraining of the embedded default.

An edit must quote lines of the script exactly. A language model that read the web
can do that; one with random weights first has to grow attention heads that find an
earlier occurrence of the current token and copy what followed it (induction heads).
Random strings that repeat teach just this, and nothing about the tasks. The paper
has no such stage; a run from a Hugging Face folder has none either.

Axis letters: B rows, T token positions.
"""

import functools
import shutil
from pathlib import Path

import grain
import jax
import numpy as np

from mlagent_jax.config import PretrainConfig, RunConfig
from mlagent_jax.data.examples import expert_chats
from mlagent_jax.data.pipeline import SftBatch
from mlagent_jax.errors import ConfigError
from mlagent_jax.model import qwen2
from mlagent_jax.parallel import hosts
from mlagent_jax.parallel.fit import check_stage
from mlagent_jax.parallel.mesh import make_mesh
from mlagent_jax.parallel.sharding import place, tree_shardings
from mlagent_jax.text.tokenizer import Tokenizer
from mlagent_jax.train.lm import LmRun, Progress, run_lm
from mlagent_jax.train.metrics import read_metrics
from mlagent_jax.train.state import Params
from mlagent_jax.train.stopping import StopSignal
from mlagent_jax.types import to_json

_EVAL_EVERY = 50
_MIN_PERIOD = 8
_EVAL_INDEX = 2**31  # practice that no update sees


def run_pretrain(
    config: RunConfig,
    workdir: Path,
    *,
    progress: Progress,
    stop: StopSignal | None = None,
) -> float:
    """Makes the tokenizer and trains a random model until it can copy.

    Every call with the same arguments ends with the same parameters.

    Args:
      config: of the run; its `model` and `pretrain` are given.
      workdir: run directory; gets tokenizer/ and pretrain/.
      progress: makes progress bars.
      stop: ends the stage early; None for never.

    Returns:
      The copy accuracy on fresh practice, in [0, 1]: the part of the repeated
      tokens that get more than half of the probability.

    Raises:
      ConfigError: the model has fewer embeddings than the tokenizer has tokens, the
        mesh does not divide the model or the batch, the config has no such stage, or
        the directory holds another run's checkpoints.
      CheckpointError: checkpoints are unusable.
      DataError: the trajectories that a tokenizer is learnt from are unusable.
      DivergedError: loss or gradient is not finite.
      RunInterruptedError: `stop` was set; the state is saved.
    """
    cfg, model_cfg = config.pretrain, config.model
    if cfg is None or model_cfg is None:
        raise ConfigError("pretrain: the config needs both `pretrain` and `model`")
    check_stage(config, model_cfg, jax.device_count(), "pretrain")
    vocab_size = prepare_tokenizer(config, workdir).vocab_size
    if vocab_size > model_cfg.vocab_size:
        raise ConfigError(
            f"model.vocab_size = {model_cfg.vocab_size}: expected at least the "
            f"tokenizer's {vocab_size}"
        )
    make = functools.partial(
        practice_batch, cfg=cfg, seed=config.seed, vocab_size=vocab_size
    )
    directory = workdir / "pretrain"
    run = LmRun(
        name="pretrain",
        directory=directory,
        graphdef=qwen2.make_graphdef(model_cfg),
        abstract_params=qwen2.abstract_params(model_cfg),
        mesh=make_mesh(config.mesh),
        optimizer=cfg.optimizer,
        num_updates=cfg.num_updates,
        micro_batches=1,
        batches=grain.MapDataset.range(cfg.num_updates).map(make),
        eval_batches=[make(_EVAL_INDEX)],
        eval_every=_EVAL_EVERY,
        keep_checkpoints=1,
        identity={
            "seed": config.seed,
            "pretrain": to_json(cfg),
            "model": to_json(model_cfg),
            "vocab_size": vocab_size,
        },
    )

    def initial_params() -> Params:
        params = qwen2.init_params(model_cfg, jax.random.key(config.seed))
        return place(jax.device_get(params), tree_shardings(run.mesh, params))

    run_lm(run, initial_params, progress, stop)
    return read_metrics(directory)[-1]["eval/accuracy"]


def practice_batch(
    index: int, *, cfg: PretrainConfig, seed: int, vocab_size: int
) -> SftBatch:
    """Returns the practice of one update; it follows from (seed, index) alone."""
    rng = np.random.default_rng((seed, index))
    shape = (cfg.batch_size, cfg.seq_len)
    tokens_BT = np.empty(shape, np.int32)
    loss_mask_BT = np.empty(shape, np.float32)
    for row in range(cfg.batch_size):
        tokens_BT[row], loss_mask_BT[row] = practice_row(rng, cfg.seq_len, vocab_size)
    positions_T = np.arange(cfg.seq_len, dtype=np.int32)
    return SftBatch(
        tokens_BT=tokens_BT,
        positions_BT=np.broadcast_to(positions_T, shape).copy(),
        segment_ids_BT=np.ones(shape, np.int32),
        loss_mask_BT=loss_mask_BT,
    )


def practice_row(
    rng: np.random.Generator, length: int, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens_T, loss mask) of one row: a random string, repeated to the end.

        tokens  7 3 9 7 3 9 7 3
        mask    0 0 0 0 1 1 1 1

    The length of the string is random too, so that looking a fixed distance back
    is no way to copy. The mask is 1 where the next token follows from the row: not
    on the first token of the copy, which nothing announces. Mixing in quoted spans
    kept the heads from forming within 400 updates (BUILD_NOTES.md).
    """
    period = int(rng.integers(_MIN_PERIOD, length // 2 + 1))
    tokens_T = np.resize(rng.integers(0, vocab_size, period), length)
    mask_T = np.zeros(length, np.float32)
    mask_T[period + 1 :] = 1.0
    return tokens_T, mask_T


def prepare_tokenizer(config: RunConfig, workdir: Path) -> Tokenizer:
    """Returns the run's tokenizer; makes <workdir>/tokenizer if it is missing.

    It is that of `config.tokenizer.path`, else that of the Hugging Face folder the
    run starts from, else one trained on what the expert's chats say.

    Raises:
      ConfigError: the named tokenizer cannot be loaded.
      DataError: the trajectories to learn one from are unusable.
    """
    folder = workdir / "tokenizer"
    if config.tokenizer.path is not None:
        return Tokenizer.load(config.tokenizer.path)
    if hosts.is_primary() and not folder.is_dir():
        _make_tokenizer(config, workdir, folder)
    hosts.barrier("tokenizer")
    return Tokenizer.load(folder)


def _make_tokenizer(config: RunConfig, workdir: Path, folder: Path) -> None:
    if config.init is not None:
        tokenizer = Tokenizer.load(config.init)
    else:
        chats = expert_chats(config, workdir)
        texts = (message.content for chat in chats for message in chat.messages)
        tokenizer = Tokenizer.train(texts, config.tokenizer.vocab_size)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.save(partial)
    partial.rename(folder)
