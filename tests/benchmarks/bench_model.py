"""Tokens a second of the quickstart's model: scoring, training, sampling.

Run by `make bench`; prints medians with minimum and maximum, asserts no time.
"""

import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mlagent_jax.config import load_config
from mlagent_jax.model import logprobs, qwen2
from mlagent_jax.sample.engine import Engine

ROUNDS = 7
CONFIG = load_config(str(Path(__file__).parents[2] / "configs" / "quickstart.py"))
ROWS, LENGTH = 16, 448


def report(name, num_tokens, seconds):
    rates = [num_tokens / s for s in seconds]
    median = statistics.median(rates)
    print(f"{name:<28} {median:9.0f} tokens/s   [{min(rates):.0f}, {max(rates):.0f}]")


def timed(function):
    function()  # compiles
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


def test_scoring_and_gradient():
    graphdef = qwen2.make_graphdef(CONFIG.model)
    params = qwen2.init_params(CONFIG.model, jax.random.key(0))
    tokens_BT = jax.random.randint(
        jax.random.key(1), (ROWS, LENGTH), 0, CONFIG.model.vocab_size
    )
    positions_BT = jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))
    ones_BT = jnp.ones((ROWS, LENGTH), jnp.int32)

    def loss(params):
        scored = logprobs.token_logprobs(
            graphdef, params, tokens_BT, positions_BT, ones_BT
        )
        return -jnp.mean(scored.logprobs_BT)

    score, gradient = jax.jit(loss), jax.jit(jax.grad(loss))
    print()
    num_tokens = ROWS * LENGTH
    report("log-probabilities", num_tokens, timed(lambda: score(params).item()))
    seconds = timed(lambda: jax.block_until_ready(gradient(params)))
    report("gradient", num_tokens, seconds)


def test_sampling():
    params = qwen2.init_params(CONFIG.model, jax.random.key(0))
    graphdef = qwen2.make_graphdef(CONFIG.model)
    engine = Engine(graphdef, params, CONFIG.sample, end_ids=(), pad_id=0)
    rng = np.random.default_rng(0)
    seconds, counts = [], []
    for round_number in range(ROUNDS + 1):
        for i in range(64):
            prompt = rng.integers(0, CONFIG.model.vocab_size, 350).tolist()
            engine.submit(f"{round_number}/{i}", prompt, i)
        start = time.perf_counter()
        finished = []
        while len(finished) < 64:
            finished += engine.step()
        seconds.append(time.perf_counter() - start)
        counts.append(sum(len(f.tokens) for f in finished))
    print()
    report("reply tokens, prefill incl.", counts[0], seconds[1:])
