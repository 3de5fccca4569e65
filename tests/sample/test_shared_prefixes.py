"""Prefixes that several rows read: what is kept, who reads it, and equal replies."""

import dataclasses

import jax
import numpy as np
import pytest

from mlagent_jax.config import MeshConfig, SampleConfig
from mlagent_jax.errors import ConfigError
from mlagent_jax.parallel.mesh import make_mesh
from mlagent_jax.parallel.sharding import tree_shardings
from mlagent_jax.sample.engine import Engine
from mlagent_jax.sample.prefixes import PrefixStore
from tests.sample.conftest import drain

CFG = SampleConfig(
    max_reply_tokens=12,
    num_slots=4,
    steps_per_call=4,
    prompt_buckets=(8, 24, 40),
    prefill_chunk=8,
    num_prefixes=2,
    prefix_readers=2,
)
RNG = np.random.default_rng(0)
TASKS = [RNG.integers(6, 60, n).tolist() for n in (16, 30, 8)]
# (prompt, tokens that are declared as shared): whole chunks, no whole chunks, all of a
# prompt twice, nothing, more than there are.
REQUESTS = [
    *((TASKS[0] + RNG.integers(6, 60, n).tolist(), 16) for n in (1, 5, 9, 3)),
    *((TASKS[1] + RNG.integers(6, 60, n).tolist(), 30) for n in (2, 8)),
    *((TASKS[1], 29) for _ in range(3)),
    *((TASKS[2], 99) for _ in range(2)),
    (RNG.integers(6, 60, 19).tolist(), 0),
    ([7], 1),
    (TASKS[2], 0),
]


@pytest.fixture(scope="module")
def make_engine(graphdef, params):
    def make(mesh=None, num_lanes=1, params=params, **changes) -> Engine:
        cfg = dataclasses.replace(CFG, **changes)
        settings = {"mesh": mesh, "num_lanes": num_lanes}
        return Engine(graphdef, params, cfg, end_ids=(5,), pad_id=0, **settings)

    return make


@pytest.fixture(scope="module")
def engine(make_engine):
    return make_engine()


def ask(engine: Engine, order=None) -> dict:
    """Replies to requests, each with the seed of its index."""
    for i in range(len(REQUESTS)) if order is None else order:
        prompt, num_shared = REQUESTS[i]
        engine.submit(str(i), prompt, i, num_shared)
    return drain(engine)


def close_to(replies: dict, others: dict) -> None:
    assert replies.keys() == others.keys()
    for name, reply in replies.items():
        assert reply.tokens == others[name].tokens
        np.testing.assert_allclose(
            reply.logprobs, others[name].logprobs, rtol=0, atol=2e-5
        )


@pytest.fixture(scope="module")
def alone(make_engine):
    """Replies where every row keeps all of its prompt itself."""
    return ask(make_engine(num_prefixes=0))


def test_replies_are_those_of_rows_that_keep_their_prefix_themselves(engine, alone):
    close_to(ask(engine), alone)


def test_a_reply_does_not_depend_on_who_shares_bit_for_bit(engine, make_engine):
    together = ask(engine)
    backwards = ask(engine, reversed(range(len(REQUESTS))))
    assert backwards == together
    for i in range(len(REQUESTS)):
        engine.close()
        assert ask(engine, [i]) == {str(i): together[str(i)]}


def test_what_is_declared_changes_nothing_where_nothing_is_kept(make_engine, alone):
    engine = make_engine(num_prefixes=0)
    for i, (prompt, _) in enumerate(REQUESTS):
        engine.submit(str(i), prompt, i)
    while engine.num_pending():
        assert all(reply == alone[reply.id] for reply in engine.step())


def test_rows_need_room_for_their_own_tokens_alone(engine):
    engine.close()
    for i in range(3):
        engine.submit(str(i), TASKS[1], i, len(TASKS[1]))
    engine.step()
    lane = engine._lanes[0]
    assert lane._capacities == (1 + CFG.max_reply_tokens, 40)
    assert lane._state.prefixes.lengths_B.tolist() == [29, 29]
    assert max(lane._state.cache.lengths_B.tolist()) <= CFG.steps_per_call
    engine.close()


def test_a_prefix_is_prefilled_once_for_all_of_its_rows(engine):
    engine.close()
    before = dataclasses.replace(engine.counters)
    for i in range(4):  # two readers a copy: kept twice, computed once
        engine.submit(str(i), [*TASKS[0], 6 + i], i, 16)
    while engine.num_pending():
        engine.step()
    assert engine.counters.reused_tokens - before.reused_tokens == 3 * 16


def test_new_weights_never_meet_the_prefixes_of_old_ones(make_engine, params):
    other = jax.tree.map(lambda p: -p, params)
    engine = make_engine()
    ask(engine)
    engine.set_params(other)
    close_to(ask(engine), ask(make_engine(params=other, num_prefixes=0)))


def test_longer_prefixes_make_the_store_grow_under_running_replies(make_engine, alone):
    engine = make_engine()
    replies = {}
    for i in (9, 0, 6, 4):
        prompt, num_shared = REQUESTS[i]
        engine.submit(str(i), prompt, i, num_shared)
        replies |= {reply.id: reply for reply in engine.step()}
    while engine.num_pending():
        replies |= {reply.id: reply for reply in engine.step()}
    close_to(replies, {name: alone[name] for name in replies})


def test_lanes_have_stores_of_their_own(make_engine, alone):
    close_to(ask(make_engine(num_lanes=2, num_prefixes=3)), alone)


def test_a_tensor_parallel_replica_gives_the_same_replies(make_engine, params, alone):
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=2), jax.devices()[:2])
    placed = jax.device_put(params, tree_shardings(mesh, params))
    close_to(ask(make_engine(mesh=mesh, params=placed)), alone)


def test_a_negative_length_and_settings_out_of_range_are_refused(engine, make_engine):
    with pytest.raises(ValueError, match="num_shared = -1 < 0"):
        engine.submit("a", [7, 8], 0, -1)
    with pytest.raises(ConfigError, match=r"sample\.num_prefixes = -1"):
        make_engine(num_prefixes=-1)
    with pytest.raises(ConfigError, match=r"sample\.prefix_readers = 0"):
        make_engine(prefix_readers=0)


def prefix(*tokens: int) -> np.ndarray:
    return np.array([*tokens, 0], np.int32)  # and the token behind it


def test_the_store_says_who_reads_what():
    store = PrefixStore(2, 2, longest=16, chunk_size=2)
    assert store.take(3, prefix(1, 2, 3)) == (0, 0, 0)
    assert store.take(0, prefix(1, 2, 3)) == (0, 0, 3)
    # No third place: another copy of it.
    assert store.take(1, prefix(1, 2, 3)) == (1, 0, 3)
    rows_PN, places_B = store.readers(4)
    assert rows_PN.tolist() == [[3, 0], [1, 0]]
    assert places_B.tolist() == [1, 2, 4, 0]  # row 2 reads nothing


def test_the_store_replaces_the_oldest_that_nobody_reads():
    store = PrefixStore(2, 1, longest=16, chunk_size=2)
    store.take(0, prefix(1, 2, 3, 4))
    store.take(1, prefix(5, 6))
    assert not store.has_place(prefix(1, 2, 3, 4))
    with pytest.raises(ValueError, match="no place"):
        store.take(2, prefix(7))
    store.free(1)
    store.free(0)
    # What is there, before anything is replaced; then the first taken, in chunks.
    assert store.take(2, prefix(5, 6)) == (1, 1, 2)
    assert store.take(1, prefix(1, 2, 9)) == (0, 0, 2)


def test_a_store_that_was_cleared_copies_nothing():
    store = PrefixStore(1, 1, longest=16, chunk_size=2)
    store.take(0, prefix(1, 2))
    store.free(0)
    store.clear()
    assert store.take(0, prefix(1, 2))[2] == 0
