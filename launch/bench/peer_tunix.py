"""Tunix: its sampler and the training step of its PeftTrainer.

Its sampler takes strings through a tokenizer, so tokens travel as decimal numbers.
It pads prompts on the left to a power of two and attends over the whole cache it
was given: agent prompts are sorted by length and meet a sampler of their length.
"""

# Tunix has an environment of its own (`make bench`), where nobody checks types.
# pyright: reportMissingImports=false

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from tunix.generate import sampler as sampler_lib
from tunix.models.qwen2 import model as model_lib
from tunix.models.qwen2 import params as params_lib
from tunix.sft import peft_trainer
from tunix.sft import utils as sft_utils

from launch.bench.child import Call
from launch.bench.shapes import Shapes, Work, cut

PAD, END = 0, 1
_AGENT_BATCH = 16  # the fastest of 8, 16, 32 and 64


class _Numbers:
    """A tokenizer whose text is the token ids themselves."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(str(token) for token in tokens)

    def bos_id(self) -> int | None:
        return None

    def eos_id(self) -> int:
        return END

    def pad_id(self) -> int:
        return PAD


def versions() -> dict[str, str]:
    """Returns what the results depend on."""
    return {name: version(name) for name in ("google-tunix", "jax", "flax")}


def make(work: Work, folder: Path) -> dict[str, Call]:
    """Returns the workloads; each trains or samples a model of its own."""
    shapes = work.shapes
    cfg = model_lib.ModelConfig(
        num_layers=shapes.layers,
        vocab_size=shapes.vocab,
        embed_dim=shapes.hidden,
        hidden_dim=shapes.mlp,
        num_heads=shapes.heads,
        head_dim=shapes.head_dim,
        num_kv_heads=shapes.kv_heads,
        rope_theta=10_000,
        norm_eps=1e-6,
    )

    def load() -> Any:
        return params_lib.create_model_from_safe_tensors(str(folder / "model"), cfg)

    model = load()
    samplers: dict[int, Any] = {}  # by the size of their caches

    def generate(
        prompts: list[list[int]], max_new: int, end_ids: list[int]
    ) -> list[list[int]]:
        padded = 1 << (max(map(len, prompts)) - 1).bit_length()
        cache_size = padded + max_new
        if cache_size not in samplers:
            samplers[cache_size] = sampler_lib.Sampler(
                model,
                _Numbers(),
                sampler_lib.CacheConfig(
                    cache_size=cache_size,
                    num_layers=cfg.num_layers,
                    num_kv_heads=cfg.num_kv_heads,
                    head_dim=cfg.head_dim,
                ),
            )
        out = samplers[cache_size](
            [" ".join(map(str, prompt)) for prompt in prompts],
            max_generation_steps=max_new,
            eos_tokens=end_ids or [shapes.vocab],
            temperature=0.0,
        )
        return [cut([int(t) for t in reply], end_ids) for reply in out.tokens]

    def uniform() -> tuple[int, Any]:
        replies = generate(work.uniform_prompts, shapes.new, [])
        return sum(map(len, replies)), replies

    def agent() -> tuple[int, Any]:
        prompts = work.agent_prompts
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        replies: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), _AGENT_BATCH):
            part = order[start : start + _AGENT_BATCH]
            found = generate(
                [prompts[i] for i in part], shapes.longest_reply, work.end_ids
            )
            for i, reply in zip(part, found, strict=True):
                replies[i] = reply
        return sum(map(len, replies)), replies

    by_length = sorted(work.ragged_rows, key=len)
    return {
        "decode_uniform": uniform,
        "decode_agent": agent,
        "sft_uniform": _Trainer(load, [work.uniform_rows]),
        "sft_ragged": _Trainer(load, _split(work.ragged_rows, shapes)),
        "sft_ragged_sorted": _Trainer(load, _split(by_length, shapes)),
    }


class _Trainer:
    """Calls run the updates of given batches, padded to a power of two."""

    def __init__(self, load: Any, batches: list[list[list[int]]]) -> None:
        self._load, self._batches = load, batches
        self._trainer: Any = None

    def __call__(self) -> tuple[int, Any]:
        if self._trainer is None:
            optimizer = optax.chain(
                optax.clip_by_global_norm(1.0),
                optax.adamw(1e-4, b1=0.9, b2=0.95, weight_decay=0.0),
            )
            self._trainer = peft_trainer.PeftTrainer(
                self._load(),
                optimizer,
                peft_trainer.TrainingConfig(eval_every_n_steps=10**9),
            ).with_gen_model_input_fn(_model_input)
        step, _ = self._trainer.jit_train_and_eval_step(cache_nnx_graph=True)
        losses = [step(_pad(rows))[0] for rows in self._batches]
        jax.block_until_ready(losses)
        num_tokens = sum(len(row) for rows in self._batches for row in rows)
        return num_tokens, [float(loss) for loss in losses]


def _split(rows: list[list[int]], shapes: Shapes) -> list[list[list[int]]]:
    size = shapes.batch
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _pad(rows: list[list[int]]) -> Any:
    width = 1 << (max(map(len, rows)) - 1).bit_length()
    tokens = np.full((len(rows), width), PAD, np.int32)
    mask = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        mask[i, : len(row)] = True
    return peft_trainer.TrainingInput(input_tokens=tokens, input_mask=mask)


def _model_input(batch: Any) -> dict[str, Any]:
    return {
        "input_tokens": batch.input_tokens,
        "input_mask": batch.input_mask,
        "positions": sft_utils.build_positions_from_mask(batch.input_mask),
        "attention_mask": sft_utils.make_causal_attn_mask(batch.input_mask),
    }
