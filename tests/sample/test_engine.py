import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.config import MeshConfig, SampleConfig
from mlagent_jax.errors import ConfigError
from mlagent_jax.model import qwen2
from mlagent_jax.model.logprobs import token_logprobs
from mlagent_jax.parallel.mesh import make_mesh
from mlagent_jax.parallel.sharding import tree_shardings
from mlagent_jax.sample.engine import Engine
from mlagent_jax.sample.lane import Lane
from tests.sample.conftest import drain

END = 5
MAX_REPLY = 12
CFG = SampleConfig(
    max_reply_tokens=MAX_REPLY,
    num_slots=3,
    steps_per_call=4,
    prompt_buckets=(24,),
    prefill_chunk=8,
)
LENGTHS = (1, 2, 8, 9, 17, 24, 13)


def random_prompts(lengths=LENGTHS, seed=0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(6, 60, n).tolist() for n in lengths]


PROMPTS = random_prompts()


@pytest.fixture(scope="module")
def flat_params(params):
    """All tokens equally likely: replies depend on seeds only."""
    return jax.tree.map(jnp.zeros_like, params)


@pytest.fixture(scope="module")
def make_engine(graphdef, params):
    def make(**changes) -> Engine:
        settings = {"decode_text": None, "mesh": None, "num_lanes": None}
        settings |= {k: changes.pop(k) for k in list(changes) if k in settings}
        cfg = dataclasses.replace(CFG, **changes)
        return Engine(graphdef, params, cfg, end_ids=(END,), pad_id=0, **settings)

    return make


@pytest.fixture(scope="module")
def shared_engine(make_engine):
    return make_engine()


@pytest.fixture
def engine(shared_engine, params):
    """The same compiled engine for all tests, without pending requests."""
    shared_engine.close()
    shared_engine.set_params(params)
    return shared_engine


def ask(engine: Engine, prompts=PROMPTS, seeds=None) -> dict:
    for i, prompt in enumerate(prompts):
        engine.submit(str(i), prompt, i if seeds is None else seeds[i])
    return drain(engine)


def score_all(graphdef, params, replies, temperature=1.0):
    """Log-probabilities and best tokens at every reply position, full forward pass."""
    B, T = len(PROMPTS), max(LENGTHS) + MAX_REPLY
    tokens_BT, segment_ids_BT = np.zeros((2, B, T), np.int32)
    for i, prompt in enumerate(PROMPTS):
        whole = [*prompt, *replies[str(i)].tokens]
        tokens_BT[i, : len(whole)] = whole
        segment_ids_BT[i, : len(whole)] = 1
    positions_BT = np.broadcast_to(np.arange(T), (B, T))

    @jax.jit
    def run(tokens_BT, positions_BT, segment_ids_BT):
        batch = (tokens_BT, positions_BT, segment_ids_BT)
        scores = token_logprobs(graphdef, params, *batch, temperature=temperature)
        hidden_BTD = qwen2.forward(
            graphdef, params, *batch[:2], segment_ids_BT=segment_ids_BT
        )
        best_BT = jnp.argmax(qwen2.unembed(graphdef, params, hidden_BTD), axis=-1)
        return scores.logprobs_BT, best_BT

    logprobs_BT, best_BT = map(np.asarray, run(tokens_BT, positions_BT, segment_ids_BT))
    for i, prompt in enumerate(PROMPTS):
        n, reply = len(prompt), replies[str(i)]
        end = n + len(reply.tokens)
        yield reply, logprobs_BT[i, n:end], tuple(best_BT[i, n - 1 : end - 1].tolist())


def test_greedy_replies_equal_those_of_the_full_forward_pass(
    make_engine, graphdef, params
):
    replies = ask(make_engine(temperature=0.0))
    for reply, logprobs_T, best in score_all(graphdef, params, replies):
        assert reply.tokens == best
        np.testing.assert_allclose(reply.logprobs, logprobs_T, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_behaviour_logprobs_equal_scoring(
    engine, make_engine, graphdef, params, temperature
):
    sampler = engine if temperature == 1.0 else make_engine(temperature=temperature)
    replies = ask(sampler)
    for reply, logprobs_T, best in score_all(graphdef, params, replies, temperature):
        assert len(reply.logprobs) == len(reply.tokens) == len(best) > 0
        np.testing.assert_allclose(reply.logprobs, logprobs_T, atol=1e-4)


def test_a_reply_ends_with_the_end_token_or_at_the_limit(engine, flat_params):
    engine.set_params(flat_params)
    prompts = random_prompts([7] * 60, seed=1)
    replies = ask(engine, prompts)
    for reply in replies.values():
        assert END not in reply.tokens[:-1]
        is_ended = reply.tokens[-1] == END
        assert reply.finish == ("stop" if is_ended else "length")
        assert is_ended or len(reply.tokens) == MAX_REPLY
    assert {r.finish for r in replies.values()} == {"stop", "length"}


def test_every_request_is_answered_once_though_rows_are_few(engine):
    prompts = random_prompts(range(1, 25), seed=2)
    assert ask(engine, prompts).keys() == {str(i) for i in range(24)}
    assert engine.num_pending() == 0
    assert engine.step() == []


def test_a_reply_depends_on_prompt_and_seed_only_bit_for_bit(engine, params):
    together = ask(engine)
    engine.set_params(params)
    alone = {}
    for i in (4, 0, 5):
        engine.submit(str(i), PROMPTS[i], i)
        alone |= drain(engine)
    engine.set_params(params)
    for i in reversed(range(len(PROMPTS))):
        engine.submit(f"other {i}", random_prompts([20], seed=i + 9)[0], 99)
        engine.submit(str(i), PROMPTS[i], i)
        engine.step()
    staggered = drain(engine)
    for name, reply in alone.items():
        assert reply == together[name]
    late = {name: reply for name, reply in staggered.items() if name in together}
    assert late  # some finished inside the loop above and are not compared
    for name, reply in late.items():
        assert reply == together[name]


@pytest.mark.parametrize("num_lanes", [2, 3, 6])
def test_it_does_not_matter_which_lane_a_request_gets(make_engine, params, num_lanes):
    stems = random_prompts([9, 16, 3], seed=12)
    tails = random_prompts(range(1, 22), seed=13)
    prompts = [(stems[i % 3] + tail)[:24] for i, tail in enumerate(tails)]
    settings = {"num_slots": 6, "prompt_buckets": (8, 24)}
    laned = make_engine(num_lanes=num_lanes, **settings)
    expected = ask(laned, prompts)
    assert laned.counters.replies == len(prompts)
    laned.set_params(params)
    staggered: dict = {}
    for i in reversed(range(len(prompts))):  # one at a time: lanes run out of step
        laned.submit(str(i), prompts[i], i)
        staggered |= {reply.id: reply for reply in laned.step()}
    staggered |= drain(laned)
    assert staggered == expected
    assert_same_replies(ask(make_engine(num_lanes=1, **settings), prompts), expected)


def test_waiting_requests_are_spread_over_the_lanes(make_engine, monkeypatch):
    taken: list[Lane] = []
    take = Lane.take
    monkeypatch.setattr(
        Lane, "take", lambda lane, request: taken.append(lane) or take(lane, request)
    )
    laned = make_engine(num_lanes=3, num_slots=6)
    assert len(ask(laned, PROMPTS[:3])) == 3
    assert len(set(taken)) == 3


def test_a_failing_lane_ends_in_its_error_and_close_waits_for_the_others(
    make_engine, monkeypatch
):
    laned = make_engine(num_lanes=2, num_slots=4)
    expected = ask(laned)
    run = Lane.run

    def fail_once(lane, *args):
        monkeypatch.setattr(Lane, "run", run)
        raise MemoryError("no room")

    monkeypatch.setattr(Lane, "run", fail_once)
    for i, prompt in enumerate(PROMPTS):
        laned.submit(str(i), prompt, i)
    with pytest.raises(MemoryError, match="no room"):
        drain(laned)
    laned.close()
    assert laned.num_pending() == 0
    assert ask(laned) == expected


def test_nothing_compiles_after_the_first_replies(make_engine, params, caplog):
    placed = jax.device_put(params, jax.devices()[0])  # as weights from a file are
    engine = make_engine()
    for is_first in (True, False):
        caplog.clear()
        engine.set_params(placed)
        with jax.log_compiles():
            ask(engine, PROMPTS[:2])
        assert any("Compiling" in r.message for r in caplog.records) == is_first


def test_seeds_choose_the_reply(engine, flat_params):
    engine.set_params(flat_params)
    prompts = [PROMPTS[4]] * 4
    seeds = [7, 7, 8, 7 + 2**40]
    replies = ask(engine, prompts, seeds)
    assert replies["0"].tokens == replies["1"].tokens
    assert len({replies[name].tokens for name in "023"}) == 3


def test_identical_prompts_share_one_prefill_and_reply_as_if_alone(engine, params):
    prompts = [PROMPTS[4]] * 5
    before = engine.counters.reused_tokens
    shared = ask(engine, prompts)
    num_cached = len(PROMPTS[4]) - 1
    assert engine.counters.reused_tokens - before == 4 * num_cached
    for i, prompt in enumerate(prompts):
        engine.set_params(params)
        engine.submit(str(i), prompt, i)
        assert drain(engine)[str(i)] == shared[str(i)]


def test_prompts_with_a_common_prefix_share_whole_chunks(engine, params):
    stem = random_prompts([17], seed=3)[0]
    prompts = [[*stem, *tail] for tail in random_prompts([3, 5, 7, 1], seed=4)]
    before = engine.counters.reused_tokens
    shared = ask(engine, prompts)
    assert engine.counters.reused_tokens - before == 2 * 16 + 17
    for i, prompt in enumerate(prompts):
        engine.set_params(params)
        engine.submit(str(i), prompt, i)
        assert drain(engine)[str(i)] == shared[str(i)]


def test_long_prompts_get_rows_first_and_those_of_one_prefix_together(make_engine):
    stems = random_prompts([8, 8], seed=7)
    rest = [0, 12, 3, 15, 1, 9]
    tails = random_prompts([n + 1 for n in rest], seed=8)
    single = make_engine(num_slots=1)
    for i, tail in enumerate(tails):
        single.submit(str(i), stems[i % 2] + tail, i)
    assert list(drain(single)) == ["3", "1", "5", "2", "4", "0"]
    # The first chunk of a stem is run once and copied for the other two.
    assert single.counters.reused_tokens == 4 * 8


def test_new_weights_never_meet_the_cache_of_old_ones(engine, params):
    ask(engine)
    new_params = jax.tree.map(lambda p: 0.9 * p, params)
    engine.set_params(new_params)
    before = engine.counters.reused_tokens
    replies = ask(engine)
    assert engine.counters.reused_tokens == before
    engine.close()
    assert ask(engine) == replies


def test_weights_cannot_change_under_a_running_reply(engine, params):
    for i, prompt in enumerate(PROMPTS):
        engine.submit(str(i), prompt, i)
    engine.step()
    with pytest.raises(RuntimeError, match="replies are being decoded"):
        engine.set_params(params)


def test_a_longer_prompt_makes_the_cache_grow_under_running_replies(make_engine):
    prompts = random_prompts([5, 6, 30, 7], seed=5)
    growing = make_engine(prompt_buckets=(8, 32))
    growing.submit("0", prompts[0], 0)
    replies = {reply.id: reply for reply in growing.step()}
    for i in (1, 2, 3):
        growing.submit(str(i), prompts[i], i)
    replies |= drain(growing)
    growing.close()  # The next requests start with the larger cache.
    large = ask(growing, prompts)
    for name, reply in large.items():
        assert replies[name].tokens == reply.tokens
        np.testing.assert_allclose(replies[name].logprobs, reply.logprobs, atol=1e-5)


def test_a_prompt_beyond_the_largest_bucket_is_refused_unsampled(engine):
    engine.submit("long", [7] * 25, 0)
    engine.submit("fits", [7] * 24, 0)
    replies = drain(engine)
    assert replies["long"].finish == "prompt_too_long"
    assert replies["long"].tokens == ()
    assert replies["fits"].finish in ("stop", "length")


def write_letters(tokens) -> str:
    return "".join(chr(ord("A") + token) for token in tokens)


def test_stop_strings_cut_a_reply_where_they_first_occur(
    engine, make_engine, flat_params
):
    engine.set_params(flat_params)
    prompts = random_prompts([6] * 8, seed=6)
    whole = ask(engine, prompts)
    name = next(name for name, reply in whole.items() if len(reply.tokens) >= 8)
    text = write_letters(whole[name].tokens)
    # Both strings occur in that reply; the one that is complete first counts.
    stops = (text[5:8], text[2:4], "never")
    stopping = make_engine(stop=stops, decode_text=write_letters)
    stopping.set_params(flat_params)
    stopped = ask(stopping, prompts)
    assert stopped[name].stop == stops[1]
    assert stopped[name].finish == "stop"
    assert stopped[name].tokens == whole[name].tokens[:4]
    assert stopped[name].logprobs == whole[name].logprobs[:4]
    for name, reply in stopped.items():
        if reply.stop == "":
            assert reply == whole[name]
        else:
            assert reply.tokens == whole[name].tokens[: len(reply.tokens)]
            assert write_letters(reply.tokens).endswith(reply.stop)
    assert len(stopped) == len(prompts)


def test_a_launched_run_may_forbid_implicit_transfers(engine):
    with jax.transfer_guard("disallow"):
        assert len(ask(engine)) == len(PROMPTS)


def test_a_tensor_parallel_replica_gives_the_same_replies(engine, make_engine, params):
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=2), jax.devices()[:2])
    split = make_engine(mesh=mesh)
    split.set_params(jax.device_put(params, tree_shardings(mesh, params)))
    assert_same_replies(ask(split), ask(engine))


def test_devices_that_share_a_key_value_head_give_the_same_replies(tiny_config):
    cfg = dataclasses.replace(tiny_config, num_heads=16, num_kv_heads=4, head_dim=4)
    graphdef = qwen2.make_graphdef(cfg)
    params = qwen2.init_params(cfg, jax.random.key(1))
    params = jax.tree.map(lambda p: 2.0 * p, params)
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=8), jax.devices())
    placed = jax.device_put(params, tree_shardings(mesh, params))
    settings = {"end_ids": (END,), "pad_id": 0}
    split = Engine(graphdef, placed, CFG, mesh=mesh, **settings)
    whole = Engine(graphdef, params, CFG, **settings)
    assert_same_replies(ask(split), ask(whole))


def assert_same_replies(replies, expected):
    assert replies.keys() == expected.keys()
    for name, reply in expected.items():
        assert replies[name].tokens == reply.tokens
        np.testing.assert_allclose(replies[name].logprobs, reply.logprobs, atol=1e-4)


def test_a_released_engine_samples_again_once_it_has_weights(engine, params):
    expected = ask(engine)
    engine.release()
    engine.submit("a", [7], 0)
    with pytest.raises(RuntimeError, match="released; call set_params"):
        engine.step()
    engine.close()
    engine.set_params(params)
    assert_same_replies(ask(engine), expected)


def test_a_bfloat16_model_samples_from_a_bfloat16_copy(tiny_config, params):
    cfg = dataclasses.replace(tiny_config, compute_dtype="bfloat16")
    engine = Engine(qwen2.make_graphdef(cfg), params, CFG, end_ids=(END,), pad_id=0)
    replies = ask(engine)
    assert len(replies) == len(PROMPTS)
    for reply in replies.values():
        assert np.all(np.isfinite(reply.logprobs))


def test_wrong_requests_and_settings_are_refused(engine, make_engine):
    with pytest.raises(ValueError, match="'a': the prompt has no token"):
        engine.submit("a", [], 0)
    engine.submit("a", [7], 0)
    with pytest.raises(ValueError, match="'a' is already pending"):
        engine.submit("a", [8], 0)
    with pytest.raises(ConfigError, match="needs `decode_text`"):
        make_engine(stop=("x",))
    with pytest.raises(ConfigError, match="num_lanes = 2: expected a divisor"):
        make_engine(num_lanes=2)
    with pytest.raises(ConfigError, match="an empty string always stops"):
        make_engine(stop=("",), decode_text=write_letters)


def test_close_forgets_everything_and_the_engine_can_be_used_again(engine):
    engine.submit("a", PROMPTS[3], 1)
    engine.step()
    engine.close()
    assert engine.num_pending() == 0
    assert engine.step() == []
    assert ask(engine).keys() == {str(i) for i in range(len(PROMPTS))}
