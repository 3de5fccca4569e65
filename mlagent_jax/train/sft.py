"""Exploration-enriched supervised fine-tuning (paper A.3, A.4).

Trains the policy on the expert's replies. Where the starting weights come from
depends on the run: a Hugging Face folder, the copying practice of `pretrain`, or,
for tests, random numbers.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from mlagent_jax.config import RunConfig
from mlagent_jax.data.examples import TokenExample, encode_example, expert_chats
from mlagent_jax.data.pipeline import make_batches, split_examples
from mlagent_jax.data.renaming import renamed_examples
from mlagent_jax.errors import ConfigError
from mlagent_jax.model import hf, qwen2
from mlagent_jax.parallel.fit import check_stage
from mlagent_jax.parallel.mesh import make_mesh
from mlagent_jax.parallel.sharding import place
from mlagent_jax.train.checkpoint import load_params
from mlagent_jax.train.lm import LmRun, Progress, abstract_on_mesh, run_lm
from mlagent_jax.train.pretrain import prepare_tokenizer
from mlagent_jax.train.state import Params, TrainState
from mlagent_jax.train.stopping import StopSignal
from mlagent_jax.types import to_json

# Fields that may change when a stage is resumed: they do not touch the weights.
_FREE_FIELDS = ("eval_every", "keep_checkpoints")


def run_sft(
    config: RunConfig,
    workdir: Path,
    *,
    progress: Progress,
    stop: StopSignal | None = None,
) -> TrainState:
    """Trains on a run's expert trajectories in <workdir>/sft.

    Called again after it was stopped at any moment, it ends with the same state.

    Args:
      config: of the run.
      workdir: run directory with tasks/, trajectories/ and, if `config.pretrain` is
        given, pretrain/.
      progress: makes progress bars.
      stop: ends the stage early; None for never.

    Raises:
      ConfigError: tokenizer and model do not fit, or the directory holds
        checkpoints of other settings.
      CheckpointError: starting weights or checkpoints are unusable.
      DataError: the trajectories are unusable, or every example is too long.
      DivergedError: loss or gradient is not finite.
      RunInterruptedError: `stop` was set; the state is saved.
    """
    tokenizer = prepare_tokenizer(config, workdir)
    frac = config.sft.mistake_frac
    chats = list(expert_chats(config, workdir, mistake_frac=frac))
    examples = [encode_example(chat, tokenizer) for chat in chats]
    quotations = renamed_examples(chats, config.sft.quote_frac, tokenizer, config.seed)
    return train_sft(
        config,
        workdir,
        examples,
        quotations=list(quotations),
        pad_id=tokenizer.pad_id,
        progress=progress,
        stop=stop,
    )


def train_sft(
    config: RunConfig,
    workdir: Path,
    examples: Sequence[TokenExample],
    *,
    quotations: Sequence[TokenExample] = (),
    pad_id: int,
    progress: Progress,
    stop: StopSignal | None = None,
) -> TrainState:
    """Trains on given examples; see `run_sft`.

    Args:
      config: of the run.
      workdir: run directory.
      examples: all of them; some trajectories are held back for the evaluation
        loss, by which the best checkpoint is kept besides the last ones.
      quotations: further ones to train on, but those of held-back trajectories.
      pad_id: token of padding.
      progress: makes progress bars.
      stop: ends the stage early; None for never.

    Raises:
      ConfigError: the tokens do not fit the model's vocabulary, the mesh does not
        divide the model or the batch, or the directory holds checkpoints of other
        settings.
    """
    cfg = config.sft
    model_cfg = hf.model_of_run(config)
    check_stage(config, model_cfg, jax.device_count(), "sft")
    highest = max((int(e.tokens_T.max()) for e in [*examples, *quotations]), default=0)
    if highest >= model_cfg.vocab_size:
        raise ConfigError(
            f"model.vocab_size = {model_cfg.vocab_size}: the examples have token "
            f"{highest}; is the tokenizer the model's own?"
        )
    train, held_back = split_examples(examples, cfg.eval_frac, config.seed)
    held_back_ids = {example.trajectory_id for example in held_back}
    batch_kwargs = {
        "batch_size": cfg.batch_size,
        "seq_lens": cfg.seq_lens,
        "pad_id": pad_id,
        "is_packed": cfg.packing,
    }
    train += [q for q in quotations if q.trajectory_id not in held_back_ids]
    epoch = make_batches(train, seed=config.seed, **batch_kwargs)
    num_updates = max(1, round(cfg.num_epochs * len(epoch)))
    eval_batches = (
        make_batches(held_back, seed=None, **batch_kwargs) if held_back else ()
    )
    run = LmRun(
        name="sft",
        directory=workdir / "sft",
        graphdef=qwen2.make_graphdef(model_cfg),
        abstract_params=qwen2.abstract_params(model_cfg),
        mesh=make_mesh(config.mesh),
        optimizer=cfg.optimizer,
        num_updates=num_updates,
        micro_batches=cfg.batch_size // cfg.micro_batch_size,
        batches=epoch.repeat(math.ceil(num_updates / len(epoch))),
        eval_batches=eval_batches,
        eval_every=cfg.eval_every,
        keep_checkpoints=cfg.keep_checkpoints,
        identity={
            "seed": config.seed,
            "sft": {k: v for k, v in to_json(cfg).items() if k not in _FREE_FIELDS},
            "examples": _fingerprint([*examples, *quotations]),
        },
    )
    return run_lm(
        run,
        lambda: initial_params(config, workdir, run.mesh),
        progress,
        stop,
    )


def initial_params(config: RunConfig, workdir: Path, mesh: Mesh) -> Params:
    """Returns the weights that fine-tuning starts from, placed on `mesh`.

    Raises:
      CheckpointError: they are missing or damaged.
    """
    if config.init is not None:
        return hf.load_folder(Path(config.init), mesh)[1]
    assert config.model is not None  # RunConfig has at least one of init and model
    template = abstract_on_mesh(qwen2.abstract_params(config.model), mesh)
    if config.pretrain is not None:
        return load_params(workdir / "pretrain" / "checkpoints", template=template)
    params = qwen2.init_params(config.model, jax.random.key(config.seed))
    shardings = jax.tree.map(lambda x: x.sharding, template)
    return place(jax.device_get(params), shardings)


def _fingerprint(examples: Sequence[TokenExample]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.name.encode())
        digest.update(example.tokens_T.tobytes())
        digest.update(example.loss_mask_T.tobytes())
    return f"{len(examples)} examples, {digest.hexdigest()[:16]}"
