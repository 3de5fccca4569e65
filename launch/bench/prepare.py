"""Writes the inputs of a benchmark run: weights, prompts, and where replies end.

A program of its own, so that the process that takes the times never loads jax.
"""

import dataclasses
import sys
from pathlib import Path

import jax

from launch.bench import peer_ours
from launch.bench.shapes import choose_end_ids, make_work, parse_shapes
from mlagent_jax.config import ModelConfig
from mlagent_jax.model import hf, qwen2


def main(folder: Path, overrides: list[str]) -> None:
    """Fills `folder` with model/ and work.json."""
    shapes = parse_shapes(overrides)
    cfg = ModelConfig(
        vocab_size=shapes.vocab,
        hidden_size=shapes.hidden,
        intermediate_size=shapes.mlp,
        num_layers=shapes.layers,
        num_heads=shapes.heads,
        num_kv_heads=shapes.kv_heads,
        head_dim=shapes.head_dim,
        rope_theta=10_000.0,
        compute_dtype="float32",
    )
    params = jax.jit(qwen2.init_params, static_argnums=0)(cfg, jax.random.key(0))
    hf.save_folder(
        folder / "model", cfg, params, end_ids=(peer_ours.END,), pad_id=peer_ours.PAD
    )
    work = make_work(shapes)
    _, replies = peer_ours.make(work, folder)["decode_agent"]()
    end_ids = choose_end_ids(replies, shapes.vocab)
    dataclasses.replace(work, end_ids=end_ids).save(folder / "work.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
