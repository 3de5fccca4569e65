"""Replies from any OpenAI-compatible chat endpoint.

Requests run in a thread pool; `poll` collects what has finished. A request that
still fails after the retries becomes an error reply with the reason, so a bad
answer never stops a run. Whoever begins new work asks `spending.stop_reason` first.
"""

import math
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

from mlagent_jax.config import PolicyConfig, SampleConfig
from mlagent_jax.errors import ConfigError, PolicyError
from mlagent_jax.policy.base import Reply, Request
from mlagent_jax.policy.endpoint import Endpoint, TransientError, shown
from mlagent_jax.policy.spending import CHARS_A_TOKEN, Spending
from mlagent_jax.text.actions import replace_surrogates


class ApiPolicy:
    """A model behind `<base_url>/chat/completions`.

    Args:
      cfg: endpoint, model name and limits.
      sample: temperature, top_p, stop strings and length of replies.
      name: of the policy in tables and records.
      first_wait_s: seconds before the second attempt, see `Endpoint`.
      spending: counts tokens and money; a new one without a file by default.

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
        spending: Spending | None = None,
    ) -> None:
        if sample.top_k != 0:
            raise ConfigError(
                f"sample.top_k = {sample.top_k}: the chat protocol has no top_k; set "
                "it to 0 and use sample.top_p"
            )
        self.name = name
        self.spending = spending or Spending(cfg)
        self._cfg = cfg
        self._sample = sample
        self._endpoint = Endpoint(cfg, first_wait_s=first_wait_s)
        self._threads = ThreadPoolExecutor(cfg.max_concurrency, "api-policy")
        self._running: dict[str, Future[Reply]] = {}

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
        self._endpoint.stop_waiting()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._endpoint.close()
        self._running = {}

    def _answer(self, request: Request) -> Reply:
        start_s = time.monotonic()
        try:
            text, finish, usage = self._endpoint.post(
                "chat/completions",
                self._body(request),
                read=lambda answer: self._read(request, answer),
                seed=request.seed,
            )
        except PolicyError as problem:
            error = str(problem)
            is_too_long = "context_length_exceeded" in error
            if not is_too_long:
                self.spending.failed(error)
            return Reply(
                request_id=request.id,
                text="",
                finish="prompt_too_long" if is_too_long else "error",
                error=error,
                seconds=time.monotonic() - start_s,
            )
        self.spending.succeeded()
        return Reply(
            request_id=request.id,
            text=text,
            finish="length" if finish == "length" else "stop",
            seconds=time.monotonic() - start_s,
            usage=usage,
        )

    def _body(self, request: Request) -> dict[str, Any]:
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
        return body

    def _read(
        self, request: Request, answer: Mapping[str, Any]
    ) -> tuple[str, object, dict[str, float]]:
        """Returns text, finish reason and token counts; what was paid is counted.

        Raises:
          TransientError: the answer holds no text.
          PolicyError: the answer is no chat completion, or was filtered.
        """
        usage = _read_usage(answer.get("usage"))
        text, finish, problem = "", None, None
        try:
            text, finish = _read_choice(answer)
        except PolicyError as error:
            problem = error
        num_chars = sum(len(message.content) for message in request.messages)
        self.spending.charge(
            usage.get("prompt_tokens", num_chars / CHARS_A_TOKEN),
            usage.get("reply_tokens", len(text) / CHARS_A_TOKEN),
        )
        if problem is not None:
            raise problem
        return text, finish, usage


def _read_choice(answer: Mapping[str, Any]) -> tuple[str, object]:
    """Returns the text and finish reason inside a decoded answer.

    Raises:
      TransientError: the answer holds no text.
      PolicyError: the answer is no chat completion, or was filtered.
    """
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        finish = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise PolicyError(
            f"the answer has no choices[0].message.content: {shown(answer)}"
        ) from error
    if finish == "content_filter":
        raise PolicyError("the endpoint filtered the reply")
    if not isinstance(text, str | None):
        raise PolicyError(f"the reply is no text: {text!r:.300}")
    if not text:
        raise TransientError(f"the reply is empty (finish_reason {finish!r})")
    # JSON may hold halves of characters, which no file and no request can.
    return replace_surrogates(text), finish


def _read_usage(usage: object) -> dict[str, float]:
    """Returns the token counts of an answer, as far as it reports usable ones."""
    if not isinstance(usage, dict):
        return {}
    counts = cast(dict[str, object], usage)
    names = {"prompt_tokens": "prompt_tokens", "reply_tokens": "completion_tokens"}
    found = {ours: counts.get(theirs) for ours, theirs in names.items()}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 0
    }
