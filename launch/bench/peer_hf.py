"""Hugging Face transformers on torch: `generate`, and a plain AdamW loop.

Static batches, as `generate` wants them: prompts sorted by length, padded on the
left. Ragged training is measured twice: in batches as they come, padded to their
longest (the default of its Trainer), and with batches of similar length.
"""

import importlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from launch.bench.child import Call
from launch.bench.shapes import Work, cut

# By its name: a type checker would read all of its models.
transformers: Any = importlib.import_module("transformers")

PAD = 0
_AGENT_BATCH = 16  # the fastest of 8, 16, 32 and 64


def versions() -> dict[str, str]:
    """Returns what the results depend on."""
    names = ("transformers", "torch")
    return {name: version(name) for name in names} | {
        "threads": str(torch.get_num_threads())
    }


def make(work: Work, folder: Path) -> dict[str, Call]:
    """Returns the workloads; each trains or samples a model of its own."""
    shapes = work.shapes

    def load() -> Any:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder / "model", dtype=torch.float32
        )
        model.generation_config.eos_token_id = None
        return model

    sampler = load().eval()

    def uniform() -> tuple[int, Any]:
        replies = _generate(sampler, work.uniform_prompts, shapes.new, [])
        return sum(map(len, replies)), replies

    def agent() -> tuple[int, Any]:
        prompts = work.agent_prompts
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        replies: list[list[int]] = [[] for _ in prompts]
        for part in _batches(order, _AGENT_BATCH):
            found = _generate(
                sampler, [prompts[i] for i in part], shapes.longest_reply, work.end_ids
            )
            for i, reply in zip(part, found, strict=True):
                replies[i] = reply
        return sum(map(len, replies)), replies

    def trainer(batches: list[list[list[int]]]) -> Call:
        made: list[tuple[Any, Any]] = []

        def train() -> tuple[int, Any]:
            if not made:
                model = load().train()
                optimizer = torch.optim.AdamW(
                    model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0
                )
                made.append((model, optimizer))
            model, optimizer = made[0]
            losses = [_train_step(model, optimizer, rows) for rows in batches]
            return sum(len(row) for rows in batches for row in rows), losses

        return train

    by_length = sorted(work.ragged_rows, key=len)
    return {
        "decode_uniform": uniform,
        "decode_agent": agent,
        "sft_uniform": trainer([work.uniform_rows]),
        "sft_ragged": trainer(list(_batches(work.ragged_rows, shapes.batch))),
        "sft_ragged_sorted": trainer(list(_batches(by_length, shapes.batch))),
    }


def _batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _generate(
    model: Any, prompts: list[list[int]], max_new: int, end_ids: list[int]
) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max_new,
            do_sample=False,
            eos_token_id=end_ids or None,
            pad_token_id=PAD,
        )
    return [cut(reply, end_ids) for reply in out[:, longest:].tolist()]


def _train_step(model: Any, optimizer: Any, rows: list[list[int]]) -> float:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows])
    loss = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()
