import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from mlagent_jax.config import SampleConfig
from mlagent_jax.model import qwen2
from mlagent_jax.policy.base import Policy, Request
from mlagent_jax.policy.local import LocalPolicy
from mlagent_jax.text.tokenizer import Tokenizer
from mlagent_jax.types import Message

CFG = SampleConfig(
    max_reply_tokens=16,
    num_slots=4,
    steps_per_call=8,
    prompt_buckets=(64,),
    prefill_chunk=16,
)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["a small corpus of text\n"], 280)


@pytest.fixture(scope="module")
def model_cfg(tokenizer, tiny_config):
    return dataclasses.replace(tiny_config, vocab_size=tokenizer.vocab_size)


@pytest.fixture(scope="module")
def params(model_cfg):
    return qwen2.init_params(model_cfg, jax.random.key(0))


@pytest.fixture(scope="module")
def make_policy(tokenizer, model_cfg, params):
    graphdef = qwen2.make_graphdef(model_cfg)

    def make(**changes) -> LocalPolicy:
        return LocalPolicy(
            name="local",
            graphdef=graphdef,
            params=params,
            tokenizer=tokenizer,
            cfg=dataclasses.replace(CFG, **changes),
            max_prompt_tokens=60,
        )

    return make


@pytest.fixture(scope="module")
def policy(make_policy):
    return make_policy()


def make_request(index: int, content: str = "a text") -> Request:
    messages = (
        Message(role="system", content="s"),
        Message(role="user", content=f"{content} {index}"),
    )
    return Request(id=f"r{index}", messages=messages, seed=index)


def ask(policy: Policy, requests) -> dict:
    for request in requests:
        policy.submit(request)
    replies = {}
    while policy.num_pending():
        for reply in policy.poll():
            assert reply.request_id not in replies
            replies[reply.request_id] = reply
    return replies


def test_replies_carry_text_tokens_and_logprobs(policy, params, tokenizer):
    requests = [make_request(i) for i in range(60)]
    # Zero weights make all tokens equally likely: some replies end, most are cut.
    policy.set_params(jax.tree.map(jnp.zeros_like, params))
    replies = ask(policy, requests)
    policy.set_params(params)
    assert replies.keys() == {request.id for request in requests}
    assert {reply.finish for reply in replies.values()} == {"stop", "length"}
    for request in requests:
        reply = replies[request.id]
        prompt = tokenizer.encode_chat(request.messages, add_generation_prompt=True)
        assert reply.prompt_tokens == tuple(prompt)
        assert len(reply.tokens) == len(reply.logprobs)
        has_end = reply.tokens[-1] == tokenizer.end_of_turn_id
        assert has_end == (reply.finish == "stop")
        spoken = reply.tokens[:-1] if has_end else reply.tokens
        assert reply.text == tokenizer.decode(spoken)
        assert reply.error == ""
        assert reply.seconds > 0


def test_the_order_of_requests_does_not_matter(policy):
    requests = [make_request(i) for i in range(6)]
    first = ask(policy, requests)
    second = ask(policy, requests[::-1])
    for name, reply in first.items():
        assert dataclasses.replace(second[name], seconds=reply.seconds) == reply


def test_shared_turns_are_kept_once_and_change_no_reply(policy, make_policy):
    requests = [make_request(i) for i in range(6)]
    expected = ask(policy, requests)
    keeping = make_policy(num_prefixes=2, prefill_chunk=4)
    for num_turns in (0, 1, 2):
        asked = [dataclasses.replace(r, num_shared_turns=num_turns) for r in requests]
        keeping.close()
        replies = ask(keeping, [*asked, dataclasses.replace(asked[0], id="again")])
        assert replies["again"].tokens == expected["r0"].tokens
        for name, reply in expected.items():
            assert replies[name].tokens == reply.tokens
        store = keeping._engine._lanes[0]._state.prefixes
        longest = len(expected["r0"].prompt_tokens) - 1
        assert (max(store.lengths_B) == longest) == (num_turns == 2)


def test_a_prompt_over_the_limit_is_answered_not_sampled(policy):
    replies = ask(policy, [make_request(0, "long " * 60), make_request(1)])
    assert replies["r0"].finish == "prompt_too_long"
    assert (replies["r0"].text, replies["r0"].tokens) == ("", ())
    assert replies["r1"].finish in ("stop", "length")


def test_a_stop_string_is_kept_out_of_the_text(policy, make_policy):
    requests = [make_request(i) for i in range(6)]
    whole = ask(policy, requests)
    text = next(r.text for r in whole.values() if len(r.text) >= 6)
    stop = text[3:5]
    stopped = ask(make_policy(stop=(stop,)), requests)
    assert any(stop in reply.text for reply in whole.values())
    for name, reply in stopped.items():
        assert reply.text == whole[name].text.partition(stop)[0]
        if stop in whole[name].text:
            assert reply.finish == "stop"


def test_new_weights_count_from_the_next_request_on(policy, params, model_cfg):
    requests = [make_request(i) for i in range(3)]
    first = ask(policy, requests)
    policy.set_params(jax.tree.map(jnp.zeros_like, params))
    for reply in ask(policy, requests).values():  # all tokens are equally likely
        expected = [-math.log(model_cfg.vocab_size)] * len(reply.tokens)
        assert reply.logprobs == pytest.approx(expected)
    policy.set_params(params)
    again = ask(policy, requests)
    assert {n: r.tokens for n, r in again.items()} == {
        n: r.tokens for n, r in first.items()
    }


def test_close_forgets_pending_requests(policy):
    policy.submit(make_request(0))
    policy.poll()
    policy.close()
    assert policy.num_pending() == 0
    assert policy.poll() == []
