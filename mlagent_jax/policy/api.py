"""Replies from any OpenAI-compatible chat endpoint.

Requests run in a thread pool; `poll` collects what has finished. A request that
still fails after the retries becomes an error reply with the reason, so a bad
answer never stops a run. The key is read from the environment, goes into one
header and never into a record, a message or a log.
"""

import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Final, cast

import httpx

from mlagent_jax.config import PolicyConfig, SampleConfig
from mlagent_jax.errors import ConfigError, PolicyError
from mlagent_jax.policy.base import Reply, Request

_MAX_ATTEMPTS: Final = 6
_MAX_WAIT_S: Final = 60.0
_MAX_RETRY_AFTER_S: Final = 600.0
_RETRIED_STATUS: Final = frozenset({408, 409, 425, 429})
_SHOWN_CHARS: Final = 300


class _TransientError(PolicyError):
    """An attempt failed in a way that another one may not.

    Attributes:
      wait_s: seconds that the endpoint asks to wait, None if it does not say.
    """

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class ApiPolicy:
    """A model behind `<base_url>/chat/completions`.

    Args:
      cfg: endpoint, model name and limits.
      sample: temperature, top_p, stop strings and length of replies.
      name: of the policy in tables and records.
      first_wait_s: seconds before the second attempt; doubled for each further
        one, up to a minute, unless the endpoint says how long to wait.

    Raises:
      ConfigError: base URL, model or key is missing, or `sample` asks for something
        that the protocol does not have.
    """

    def __init__(
        self,
        cfg: PolicyConfig,
        sample: SampleConfig,
        *,
        name: str = "api",
        first_wait_s: float = 1.0,
    ) -> None:
        self._key = _checked_key(cfg, sample)
        self.name = name
        self._cfg = cfg
        self._sample = sample
        self._first_wait_s = first_wait_s
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=cfg.timeout_s,
            limits=httpx.Limits(max_connections=cfg.max_concurrency),
        )
        self._threads = ThreadPoolExecutor(cfg.max_concurrency, "api-policy")
        self._running: dict[str, Future[Reply]] = {}
        self._closing = threading.Event()

    def submit(self, request: Request) -> None:
        """Queues a request; at most `max_concurrency` are sent at once."""
        self._running[request.id] = self._threads.submit(self._answer, request)

    def poll(self) -> list[Reply]:
        """Returns the replies that have arrived, in order of submission."""
        done = [name for name, future in self._running.items() if future.done()]
        return [self._running.pop(name).result() for name in done]

    def num_pending(self) -> int:
        """Returns how many requests are queued, sent or not collected yet."""
        return len(self._running)

    def close(self) -> None:
        """Drops what is queued, waits for what is sent and closes connections."""
        self._closing.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._client.close()
        self._running = {}

    def _answer(self, request: Request) -> Reply:
        start_s = time.monotonic()
        rng = random.Random(request.seed)  # Spreads the retries of one burst.
        error = ""
        for attempt in range(_MAX_ATTEMPTS):
            try:
                return _read_answer(request.id, self._send(request), start_s)
            except _TransientError as problem:
                error = f"{problem}; gave up after {attempt + 1} attempts"
                wait_s = min(self._first_wait_s * 2**attempt, _MAX_WAIT_S)
                wait_s *= rng.uniform(0.5, 1.0)
                if problem.wait_s is not None:
                    wait_s = min(problem.wait_s, _MAX_RETRY_AFTER_S)
                is_last = attempt + 1 == _MAX_ATTEMPTS
                if is_last or self._closing.wait(wait_s):
                    break
            except PolicyError as problem:
                error = str(problem)
                break
        return _make_error(request.id, error, start_s)

    def _send(self, request: Request) -> Mapping[str, Any]:
        """Returns the JSON object of one attempt's answer.

        Raises:
          _TransientError: it failed, but another attempt may not.
          PolicyError: the endpoint refused the request.
        """
        body: dict[str, Any] = {
            "model": self._cfg.model,
            "messages": [
                {"role": message.role, "content": message.content}
                for message in request.messages
            ],
            "temperature": self._sample.temperature,
            "top_p": self._sample.top_p,
            "max_tokens": self._sample.max_reply_tokens,
            "seed": request.seed,
        }
        if self._sample.stop:
            body["stop"] = list(self._sample.stop)
        url = f"{self._cfg.base_url.rstrip('/')}/chat/completions"
        try:
            response = self._client.post(url, json=body)
        except httpx.TimeoutException as error:
            raise _TransientError(
                f"{url}: no answer in {self._cfg.timeout_s:g} s"
            ) from error
        except httpx.HTTPError as error:
            raise _TransientError(f"{url}: {error or type(error).__name__}") from error
        if not response.is_success:
            problem = f"{url}: status {response.status_code}: {self._shown(response)}"
            if response.status_code in _RETRIED_STATUS or response.is_server_error:
                raise _TransientError(problem, _retry_after_s(response))
            raise PolicyError(problem)
        try:
            answer = json.loads(response.content.decode("utf-8"))
        except ValueError as error:
            raise _TransientError(
                f"{url}: the answer is no JSON in UTF-8: {self._shown(response)!r}"
            ) from error
        if not isinstance(answer, dict):
            raise PolicyError(f"{url}: expected an object: {self._shown(response)}")
        return cast(dict[str, Any], answer)

    def _shown(self, response: httpx.Response) -> str:
        text = response.content.decode("utf-8", "replace").strip()
        # Some endpoints quote the key in their answer.
        return text.replace(self._key, "***")[:_SHOWN_CHARS] or "(empty)"


def _checked_key(cfg: PolicyConfig, sample: SampleConfig) -> str:
    """Returns the key after all settings have been found usable.

    Raises:
      ConfigError: see `ApiPolicy`.
    """
    for field in ("base_url", "model", "api_key_env"):
        if not getattr(cfg, field):
            raise ConfigError(f"policy.{field} is empty; kind 'api' needs it")
    if not cfg.base_url.startswith(("http://", "https://")):
        raise ConfigError(
            f"policy.base_url = {cfg.base_url!r}: expected http:// or https://"
        )
    if sample.top_k != 0:
        raise ConfigError(
            f"sample.top_k = {sample.top_k}: the chat protocol has no top_k; set it to "
            "0 and use sample.top_p"
        )
    key = os.environ.get(cfg.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {cfg.api_key_env} (policy.api_key_env) is not "
            "set; put the key there, or any word if the endpoint needs none"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the environment variable {cfg.api_key_env} holds characters that no key "
            "has"
        )
    return key


def _read_answer(request_id: str, answer: Mapping[str, Any], start_s: float) -> Reply:
    """Returns the reply inside a decoded answer.

    Raises:
      _TransientError: the answer holds no text.
      PolicyError: the answer is no chat completion, or was filtered.
    """
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        finish = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        shown = json.dumps(answer)[:_SHOWN_CHARS]
        raise PolicyError(
            f"the answer has no choices[0].message.content: {shown}"
        ) from error
    if finish == "content_filter":
        raise PolicyError("the endpoint filtered the reply")
    if not isinstance(text, str | None):
        raise PolicyError(f"the reply is no text: {text!r:.{_SHOWN_CHARS}}")
    if not text:
        raise _TransientError(f"the reply is empty (finish_reason {finish!r})")
    return Reply(
        request_id=request_id,
        text=text,
        finish="length" if finish == "length" else "stop",
        seconds=time.monotonic() - start_s,
        usage=_read_usage(answer.get("usage")),
    )


def _read_usage(usage: object) -> dict[str, float]:
    """Returns the token counts of an answer, as far as it reports them."""
    if not isinstance(usage, dict):
        return {}
    counts = cast(dict[str, object], usage)
    names = {"prompt_tokens": "prompt_tokens", "reply_tokens": "completion_tokens"}
    found = {ours: counts.get(theirs) for ours, theirs in names.items()}
    return {k: float(v) for k, v in found.items() if isinstance(v, int | float)}


def _make_error(request_id: str, error: str, start_s: float) -> Reply:
    return Reply(
        request_id=request_id,
        text="",
        finish="prompt_too_long" if "context_length_exceeded" in error else "error",
        error=error,
        seconds=time.monotonic() - start_s,
    )


def _retry_after_s(response: httpx.Response) -> float | None:
    """Returns the seconds that Retry-After asks for; it may hold a date."""
    value = response.headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
