"""The curves of `launch.bench.own`, each in a process of its own.

python -m launch.bench.curves <name> <rounds> <folder> <output.json>
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from launch.bench.own import medians
from launch.bench.shapes import Work
from mlagent_jax.config import SampleConfig
from mlagent_jax.model import hf
from mlagent_jax.sample.programs import make_programs

_STEPS = 8
_CONTEXTS = (128, 256, 512, 1024, 2048, 4096)
_BATCHES = (1, 2, 4, 8, 16, 32)
_CAPACITIES = (512, 1024, 2048, 4096, 8192)


def decode_call(
    work: Work, folder: Path, batch: int, context: int, capacity: int
) -> Callable[[], object]:
    """Returns a call that decodes `_STEPS` tokens in rows of one live length."""
    shapes = work.shapes
    cfg, params = hf.load_folder(folder / "model")
    sample = SampleConfig(
        temperature=0.0,
        max_reply_tokens=1024,
        num_slots=batch,
        steps_per_call=_STEPS,
    )
    programs = make_programs(cfg, sample, (shapes.vocab,), None)
    weights = programs.fuse(params)
    keep_B = jnp.ones(batch, bool)
    state = programs.init(capacity)

    def run() -> None:
        nonlocal state
        # Every call starts at the same length; what lies there does not matter.
        lengths_B = jnp.full(batch, context - _STEPS, jnp.int32)
        fresh = dataclasses.replace(
            state,
            cache=dataclasses.replace(state.cache, lengths_B=lengths_B),
            counts_B=jnp.zeros(batch, jnp.int32),
            is_live_B=jnp.ones(batch, bool),
        )
        state = jax.block_until_ready(programs.decode(weights, fresh, keep_B))

    return run


def measure(name: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Returns {"points": rows of the curve}."""
    work = Work.load(folder / "work.json")
    if name == "decode_by_context":
        keys = [(8, n, _CONTEXTS[-1]) for n in _CONTEXTS]
        axis = 1
    elif name == "decode_by_batch":
        keys = [(n, 512, 1024) for n in _BATCHES]
        axis = 0
    else:
        keys = [(8, 256, n) for n in _CAPACITIES]
        axis = 2
    label = ("batch", "live_tokens", "allocated_tokens")[axis]
    calls = {key: decode_call(work, folder, *key) for key in keys}
    taken = medians(calls, rounds)
    return {
        "points": [
            {label: key[axis], "cpu_ms_a_token": 1e3 * seconds / (_STEPS * key[0])}
            for key, seconds in taken.items()
        ]
    }


if __name__ == "__main__":
    curve = measure(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    Path(sys.argv[4]).write_text(json.dumps(curve))
