"""The model that the tests of the sampler run, and how an engine is emptied."""

import jax
import pytest

from mlagent_jax.model import qwen2
from mlagent_jax.sample.engine import Engine


@pytest.fixture(scope="module")
def graphdef(tiny_config):
    return qwen2.make_graphdef(tiny_config)


@pytest.fixture(scope="module")
def params(tiny_params):
    # Larger weights make the distribution less flat: a wrong cache shows.
    return jax.tree.map(lambda p: 2.0 * p, tiny_params)


def drain(engine: Engine) -> dict:
    """Returns the reply to every request that is pending, each once."""
    replies = {}
    while engine.num_pending():
        for reply in engine.step():
            assert reply.id not in replies
            replies[reply.id] = reply
    return replies
