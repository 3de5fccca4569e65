"""This project on the same work: `sample.engine` and `train.lm`."""

import dataclasses
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch.bench.child import Call
from launch.bench.shapes import Work
from launch.device_setup import keep_freed_memory
from mlagent_jax.config import OptimizerConfig, SampleConfig
from mlagent_jax.data.examples import TokenExample
from mlagent_jax.data.pipeline import SftBatch, make_batches
from mlagent_jax.model import hf, qwen2
from mlagent_jax.sample.engine import Engine
from mlagent_jax.train.lm import make_lm_step
from mlagent_jax.train.optimizer import make_optimizer
from mlagent_jax.train.state import init_state

PAD, END = 0, 1


def versions() -> dict[str, str]:
    """Returns what the results depend on."""
    return {name: version(name) for name in ("jax", "flax")}


def make(work: Work, folder: Path) -> dict[str, Call]:
    """Returns the workloads; each trains or samples a model of its own."""
    keep_freed_memory()  # as every training stage does
    shapes = work.shapes
    cfg, params = hf.load_folder(folder / "model")
    cfg = dataclasses.replace(cfg, compute_dtype="float32")
    graphdef = qwen2.make_graphdef(cfg)

    def sampler(
        prompts: list[list[int]], end_ids: list[int], num_slots: int, longest: int
    ) -> Call:
        engine = Engine(
            graphdef,
            params,
            SampleConfig(
                temperature=0.0,
                max_reply_tokens=longest,
                num_slots=num_slots,
                prefill_chunk=64,
                prompt_buckets=(max(map(len, prompts)),),
            ),
            end_ids=end_ids,
            pad_id=PAD,
        )

        def sample() -> tuple[int, Any]:
            engine.set_params(params)  # as after an update: nothing stays cached
            for i, prompt in enumerate(prompts):
                engine.submit(str(i), prompt, i)
            replies: list[list[int]] = [[] for _ in prompts]
            while engine.num_pending():
                for reply in engine.step():
                    replies[int(reply.id)] = list(reply.tokens)
            return sum(map(len, replies)), replies

        return sample

    def trainer(rows: list[list[int]], **batching: Any) -> Call:
        examples = [
            TokenExample(
                name=f"{i}@0",
                tokens_T=np.array(row, np.int32),
                loss_mask_T=np.ones(len(row), bool),
            )
            for i, row in enumerate(rows)
        ]
        batches = list(make_batches(examples, pad_id=PAD, seed=None, **batching))
        optimizer = make_optimizer(
            OptimizerConfig(peak_lr=1e-4, end_lr_frac=1.0), 1_000_000
        )
        step = make_lm_step(graphdef, optimizer, micro_batches=1)
        states = [init_state(jax.tree.map(np.asarray, params), optimizer)]

        def train() -> tuple[int, Any]:
            losses: list[jax.Array] = []
            for batch in batches:
                state, metrics = step(states.pop(), _without_first(batch))
                states.append(state)
                losses.append(metrics["loss"])
            jax.block_until_ready(states)
            return sum(map(len, rows)), [float(loss) for loss in losses]

        return train

    def packed() -> Call:
        return trainer(
            work.ragged_rows, batch_size=2, seq_lens=(shapes.longest,), is_packed=True
        )

    return {
        "decode_uniform": sampler(work.uniform_prompts, [], shapes.batch, shapes.new),
        "decode_agent": sampler(
            work.agent_prompts, work.end_ids, shapes.slots, shapes.longest_reply
        ),
        "sft_uniform": trainer(
            work.uniform_rows, batch_size=shapes.batch, seq_lens=(shapes.seq,)
        ),
        "sft_ragged": packed(),
        "sft_ragged_sorted": packed(),  # a model of its own, as everybody trains there
    }


def _without_first(batch: SftBatch) -> SftBatch:
    """Returns a batch without loss on the first token of a row, as peers have it."""
    loss_mask_BT = batch.loss_mask_BT * (batch.positions_BT > 0)
    return SftBatch(
        tokens_BT=batch.tokens_BT,
        positions_BT=batch.positions_BT,
        segment_ids_BT=batch.segment_ids_BT,
        loss_mask_BT=loss_mask_BT,
    )
