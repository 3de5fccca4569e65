"""The endpoint client against a server on this machine that misbehaves on demand."""

import http.server
import json
import logging
import re
import socket
import struct
import threading
import time
from email.utils import formatdate

import pytest

from mlagent_jax.config import PolicyConfig, SampleConfig
from mlagent_jax.errors import ConfigError
from mlagent_jax.policy.api import ApiPolicy
from mlagent_jax.policy.base import Request
from mlagent_jax.policy.spending import Spending
from mlagent_jax.types import Message

KEY = "secret-key-1234"
MESSAGES = (Message(role="system", content="s"), Message(role="user", content="hello"))


def completion(text="hi", finish="stop"):
    message = {"role": "assistant", "content": text}
    return {
        "choices": [{"message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }


class Endpoint:
    """Answers with the scripted answers in turn, then with the last one."""

    def __init__(self):
        self.answers = [(200, {}, completion())]
        self.delay_s = 0.0
        self.requests = []
        self.num_open = self.max_open = 0
        self._lock = threading.Lock()
        endpoint = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                length = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(length))
                status, headers, answer = endpoint.take(self, body)
                data = answer if isinstance(answer, bytes) else json.dumps(answer)
                data = data if isinstance(data, bytes) else data.encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(
            target=self.server.serve_forever, args=(0.02,), daemon=True
        )
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def take(self, handler, body):
        with self._lock:
            self.num_open += 1
            self.max_open = max(self.max_open, self.num_open)
            self.requests.append((handler.path, dict(handler.headers), body))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        time.sleep(self.delay_s)
        with self._lock:
            self.num_open -= 1
        return answer

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    server = Endpoint()
    yield server
    server.close()


def make_policy(endpoint, *, first_wait_s=0.001, sample=None, **changes):
    settings = {"timeout_s": 5.0, "max_concurrency": 4} | changes
    cfg = PolicyConfig(
        kind="api",
        base_url=endpoint.url,
        model="some-model",
        api_key_env="TEST_KEY",
        **settings,
    )
    return ApiPolicy(cfg, sample or SampleConfig(), first_wait_s=first_wait_s)


def ask(policy, num=1):
    for i in range(num):
        policy.submit(Request(id=f"r{i}", messages=MESSAGES, seed=i))
    replies = []
    deadline = time.monotonic() + 20
    while policy.num_pending() and time.monotonic() < deadline:
        replies += policy.poll()
        time.sleep(0.002)
    policy.close()
    return replies


def test_a_reply_carries_text_and_token_counts(endpoint):
    (reply,) = ask(make_policy(endpoint))
    assert (reply.request_id, reply.text, reply.finish) == ("r0", "hi", "stop")
    assert reply.usage == {"prompt_tokens": 7.0, "reply_tokens": 2.0}
    assert reply.seconds > 0


def test_the_request_has_the_chat_and_the_sampling_settings(endpoint):
    sample = SampleConfig(temperature=0.5, top_p=0.9, max_reply_tokens=33, stop=("x",))
    ask(make_policy(endpoint, sample=sample))
    ((path, headers, body),) = endpoint.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "some-model",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "hello"},
        ],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 33,
        "seed": 0,
        "stop": ["x"],
    }


def test_every_request_is_answered_once_and_few_run_at_a_time(endpoint):
    endpoint.delay_s = 0.02
    replies = ask(make_policy(endpoint, max_concurrency=3), num=12)
    assert sorted(r.request_id for r in replies) == sorted(f"r{i}" for i in range(12))
    assert endpoint.max_open == 3


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_passing_failures_are_tried_again(endpoint, status):
    endpoint.answers = [(status, {}, {"error": "busy"})] * 2 + endpoint.answers
    (reply,) = ask(make_policy(endpoint))
    assert reply.text == "hi"
    assert len(endpoint.requests) == 3


def test_retry_after_is_obeyed_in_seconds_and_as_a_date(endpoint):
    soon = formatdate(time.time() + 2, usegmt=True)
    busy = [(429, {"Retry-After": "1"}, {}), (503, {"Retry-After": soon}, {})]
    endpoint.answers = busy + endpoint.answers
    (reply,) = ask(make_policy(endpoint, first_wait_s=60.0))
    assert reply.text == "hi"
    assert 0.99 < reply.seconds < 4.5


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "no JSON in UTF-8: '(empty)'"),
        (b"\xff\xfe{}", "no JSON in UTF-8"),
        (b'{"choices": [', "no JSON in UTF-8"),
        (completion(text=""), "the reply is empty"),
        (completion(text=None), "the reply is empty"),
    ],
)
def test_useless_answers_are_tried_again_then_reported(endpoint, answer, text):
    endpoint.answers = [(200, {}, answer)]
    (reply,) = ask(make_policy(endpoint))
    assert reply.finish == "error"
    assert reply.text == ""
    assert text in reply.error
    assert "gave up after 6 attempts" in reply.error
    assert len(endpoint.requests) == 6


@pytest.mark.parametrize(
    ("status", "answer", "text"),
    [
        (200, {"outputs": ["hi"]}, "no choices[0].message.content"),
        (200, {"choices": []}, "no choices[0].message.content"),
        (200, {"choices": [{"message": "hi"}]}, "no choices[0].message.content"),
        (200, ["hi"], "expected an object"),
        (200, completion(text=["hi"]), "the reply is no text"),
        (200, completion(finish="content_filter"), "filtered"),
        (401, {"error": f"bad key {KEY}"}, "status 401"),
        (404, {"error": "no such model"}, "no such model"),
    ],
)
def test_refusals_and_changed_schemas_are_reported_at_once(
    endpoint, status, answer, text
):
    endpoint.answers = [(status, {}, answer)]
    (reply,) = ask(make_policy(endpoint))
    assert reply.finish == "error"
    assert text in reply.error
    assert len(endpoint.requests) == 1


def test_a_cut_reply_and_a_too_long_prompt_are_told_apart(endpoint):
    endpoint.answers = [
        (200, {}, completion(finish="length")),
        (400, {}, {"error": {"code": "context_length_exceeded"}}),
    ]
    (cut, too_long) = ask(make_policy(endpoint, max_concurrency=1), num=2)
    assert (cut.finish, cut.text) == ("length", "hi")
    assert too_long.finish == "prompt_too_long"


def test_a_slow_endpoint_becomes_an_error_reply(endpoint):
    endpoint.delay_s = 0.3
    (reply,) = ask(make_policy(endpoint, timeout_s=0.05))
    assert reply.finish == "error"
    assert "no answer in 0.05 s" in reply.error


def test_a_dead_endpoint_becomes_an_error_reply(endpoint):
    policy = make_policy(endpoint)
    endpoint.server.server_close()
    (reply,) = ask(policy)
    assert reply.finish == "error"
    assert endpoint.url in reply.error


def test_the_key_is_in_no_reply_and_in_no_log(endpoint, caplog):
    endpoint.answers = [(401, {}, {"error": f"wrong key {KEY}"})]
    with caplog.at_level(logging.DEBUG):
        policy = make_policy(endpoint)
        (reply,) = ask(policy)
    assert "wrong key ***" in reply.error
    assert KEY not in repr(reply) + repr(policy) + caplog.text


def test_closing_does_not_wait_for_retries(endpoint):
    endpoint.answers = [(503, {"Retry-After": "500"}, {})]
    policy = make_policy(endpoint)
    policy.submit(Request(id="r", messages=MESSAGES, seed=0))
    while not endpoint.requests:
        time.sleep(0.002)
    start_s = time.monotonic()
    policy.close()
    assert time.monotonic() - start_s < 5
    assert policy.num_pending() == 0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"base_url": ""}, "policy.base_url is empty"),
        ({"base_url": "localhost:80"}, "expected http:// or https://"),
        ({"model": ""}, "policy.model is empty"),
        ({"api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY .* is not set"),
    ],
)
def test_missing_settings_are_refused(monkeypatch, changes, text):
    monkeypatch.setenv("TEST_KEY", KEY)
    settings = {"base_url": "http://x", "model": "m", "api_key_env": "TEST_KEY"}
    cfg = PolicyConfig(kind="api", **(settings | changes))
    with pytest.raises(ConfigError, match=text):
        ApiPolicy(cfg, SampleConfig())


def test_top_k_is_refused(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    cfg = PolicyConfig(base_url="http://x", model="m", api_key_env="TEST_KEY")
    with pytest.raises(ConfigError, match="no top_k"):
        ApiPolicy(cfg, SampleConfig(top_k=5))


# What endpoints really do: each is tried again or reported, and nothing is lost.


class Raw:
    """Answers every connection with given bytes and ends it as told."""

    def __init__(self, *answers, reset=False, pause_s=0.0):
        self.answers = list(answers)
        self.reset = reset
        self.pause_s = pause_s
        self.num_connections = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.num_connections += 1
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            connection.settimeout(2.0)
            try:
                receive_request(connection)
                if self.reset:
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                elif self.pause_s:
                    for i in range(len(answer)):
                        connection.sendall(answer[i : i + 1])
                        time.sleep(self.pause_s)
                else:
                    connection.sendall(answer)
            except OSError:
                pass
            connection.close()

    def close(self):
        self.socket.close()


def receive_request(connection):
    """Takes a whole request: closing with a part of it unread would be a reset."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = connection.recv(65_536)
        if not part:
            return
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: *(\d+)", head.lower())[1])
    while len(body) < length:
        part = connection.recv(65_536)
        if not part:
            return
        body += part


def http_answer(body, length=None, kind="application/json"):
    length = len(body) if length is None else length
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


GOOD_ANSWER = http_answer(json.dumps(completion()).encode())


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (http_answer(b'{"choices": [{"mess', length=500), "peer closed connection"),
        (b"HTTP/1.1 200 OK\r\nConten", "disconnected|closed|Server"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "illegal|disconnected|invalid"),
        (http_answer(b"<html>Login</html>", kind="text/html"), r"\(text/html.*no JSON"),
        (http_answer(b"[" * 100_000), "no JSON"),
        (http_answer("höhe".encode("latin-1"), kind="text/plain"), "no JSON in UTF-8"),
    ],
)
def test_broken_answers_are_tried_again_then_reported(monkeypatch, answer, text):
    monkeypatch.setenv("TEST_KEY", KEY)
    server = Raw(answer)
    (reply,) = ask(make_policy(server))
    server.close()
    assert reply.finish == "error"
    assert re.search(text, reply.error)
    assert "gave up after 6 attempts" in reply.error
    assert server.num_connections == 6


def test_a_broken_answer_costs_no_more_than_the_time_to_ask_again(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    server = Raw(http_answer(b"{", length=9), GOOD_ANSWER)
    (reply,) = ask(make_policy(server))
    server.close()
    assert (reply.text, server.num_connections) == ("hi", 2)


def test_a_reset_connection_is_tried_again(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    server = Raw(b"", reset=True)
    (reply,) = ask(make_policy(server))
    server.close()
    assert reply.finish == "error"
    assert server.num_connections == 6


def test_a_trickle_ends_at_the_time_limit(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    server = Raw(http_answer(b" " * 10_000), pause_s=0.01)
    policy = make_policy(server, timeout_s=0.3)
    policy.submit(Request(id="r", messages=MESSAGES, seed=0))
    while not server.num_connections > 1:
        time.sleep(0.01)
    policy.close()
    server.close()


def test_halves_of_characters_become_replacement_characters(endpoint):
    endpoint.answers = [(200, {}, completion(text="a\ud800b"))]
    (reply,) = ask(make_policy(endpoint))
    assert reply.text == "a\ufffdb"


@pytest.mark.parametrize("count", [True, -3, "7", None, float("nan"), [1]])
def test_useless_token_counts_are_left_out(endpoint, count):
    answer = completion() | {"usage": {"prompt_tokens": count, "completion_tokens": 2}}
    endpoint.answers = [(200, {}, answer)]
    policy = make_policy(endpoint)
    (reply,) = ask(policy)
    assert reply.usage == {"reply_tokens": 2.0}
    # What the endpoint does not count is estimated: six characters were sent.
    assert policy.spending.tokens == pytest.approx(6 / 4 + 2)


def test_everything_paid_for_is_counted_also_what_led_to_nothing(endpoint):
    endpoint.answers = [
        (200, {}, completion(text="")),
        (503, {}, {}),
        (200, {}, completion(finish="content_filter")),
    ]
    policy = make_policy(
        endpoint, prompt_usd_per_million=1e6, reply_usd_per_million=10e6
    )
    (reply,) = ask(policy)
    assert reply.finish == "error"
    assert policy.spending.tokens == 2 * 9
    assert policy.spending.usd == pytest.approx(2 * (7 + 20))


def test_a_budget_of_tokens_or_money_gives_a_reason_to_stop(endpoint):
    prices = {"prompt_usd_per_million": 1.0, "reply_usd_per_million": 1.0}
    for limit, text in (
        ({"max_tokens": 10}, "18 tokens are spent on some-model.*max_tokens = 10"),
        ({"max_usd": 1e-5}, "USD are spent on some-model.*max_usd = 1e-05"),
    ):
        policy = make_policy(endpoint, **prices, **limit)
        assert policy.spending.stop_reason() == ""
        ask(policy, num=2)
        assert re.search(text, policy.spending.stop_reason())


def test_an_endpoint_that_fails_again_and_again_is_a_reason_to_stop(endpoint):
    endpoint.answers = [(401, {}, {"error": "bad key"})]
    policy = make_policy(endpoint, max_concurrency=2)
    ask(policy, num=4)
    assert "4 requests in a row failed" in policy.spending.stop_reason()
    assert "bad key" in policy.spending.stop_reason()


def test_spending_goes_on_from_what_was_spent_before():
    cfg = PolicyConfig(kind="api", model="m", max_tokens=100)
    charges = []
    spending = Spending(
        cfg, before=(60.0, 30.0), on_charge=lambda *tokens: charges.append(tokens)
    )
    assert spending.stop_reason() == ""
    spending.charge(8.0, 2.0)
    assert "100 tokens are spent" in spending.stop_reason()
    assert charges == [(8.0, 2.0)]
