"""One OpenAI-compatible endpoint: sends JSON, retries what may pass, reads JSON.

Whatever the other side does (no answer, half an answer, another schema, another
encoding, a web page) ends as a parsed object or as a `PolicyError` that says what
came. The key is read from the environment, goes into one header and never into a
record, a message or a log.
"""

import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar, cast

import httpx

from mlagent_jax.config import PolicyConfig
from mlagent_jax.errors import ConfigError, PolicyError

T = TypeVar("T")

_MAX_ATTEMPTS: Final = 6
_MAX_WAIT_S: Final = 60.0
_MAX_RETRY_AFTER_S: Final = 600.0
_MAX_ANSWER_BYTES: Final = 64 << 20
_RETRIED_STATUS: Final = frozenset({408, 409, 425, 429})
_SHOWN_CHARS: Final = 300


class TransientError(PolicyError):
    """An attempt failed in a way that another one may not.

    Attributes:
      wait_s: seconds that the endpoint asks to wait, None if it does not say.
    """

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Endpoint:
    """Sends requests from any number of threads.

    Args:
      cfg: address, model, key and limits.
      first_wait_s: seconds before the second attempt; doubled for each further
        one, up to a minute, unless the endpoint says how long to wait.

    Raises:
      ConfigError: base URL, model or key is missing.
    """

    def __init__(self, cfg: PolicyConfig, *, first_wait_s: float = 1.0) -> None:
        self._key = _checked_key(cfg)
        self._cfg = cfg
        self._first_wait_s = first_wait_s
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=cfg.timeout_s,
            limits=httpx.Limits(max_connections=cfg.max_concurrency),
        )
        self._closing = threading.Event()

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        read: Callable[[Mapping[str, Any]], T],
        seed: int = 0,
    ) -> T:
        """Returns `read(answer)` of the first attempt that succeeds.

        Args:
          path: below the base URL, e.g. "chat/completions".
          body: sent as JSON.
          read: takes the answer apart; may raise TransientError for an answer that
            is useless but may be better next time, or PolicyError.
          seed: spreads the retries of one burst.

        Raises:
          PolicyError: the endpoint refused, its answers have another form, or it
            still failed after all attempts.
        """
        rng = random.Random(seed)
        error = ""
        for attempt in range(_MAX_ATTEMPTS):
            try:
                return read(self._send(path, body))
            except TransientError as problem:
                error = f"{problem}; gave up after {attempt + 1} attempts"
                wait_s = min(self._first_wait_s * 2**attempt, _MAX_WAIT_S)
                wait_s *= rng.uniform(0.5, 1.0)
                if problem.wait_s is not None:
                    wait_s = min(problem.wait_s, _MAX_RETRY_AFTER_S)
                is_last = attempt + 1 == _MAX_ATTEMPTS
                if is_last or self._closing.wait(wait_s):
                    break
        raise PolicyError(error)

    def stop_waiting(self) -> None:
        """Makes waits between attempts end at once."""
        self._closing.set()

    def close(self) -> None:
        """Closes all connections."""
        self.stop_waiting()
        self._client.close()

    def _send(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the JSON object of one attempt's answer.

        Raises:
          TransientError: it failed, but another attempt may not.
          PolicyError: the endpoint refused the request.
        """
        url = f"{self._cfg.base_url.rstrip('/')}/{path}"
        try:
            response, content = self._receive(url, body)
        except httpx.TimeoutException as error:
            raise TransientError(
                f"{url}: no answer in {self._cfg.timeout_s:g} s"
            ) from error
        except httpx.HTTPError as error:
            raise TransientError(f"{url}: {error or type(error).__name__}") from error
        if not response.is_success:
            problem = f"{url}: status {response.status_code}: {self._shown(content)}"
            if response.status_code in _RETRIED_STATUS or response.is_server_error:
                raise TransientError(problem, _retry_after_s(response))
            raise PolicyError(problem)
        try:
            answer = json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            kind = response.headers.get("content-type", "no content type")
            raise TransientError(
                f"{url}: the answer ({kind}) is no JSON in UTF-8: "
                f"{self._shown(content)!r}"
            ) from error
        if not isinstance(answer, dict):
            raise PolicyError(f"{url}: expected an object: {self._shown(content)}")
        return cast(dict[str, Any], answer)

    def _receive(
        self, url: str, body: Mapping[str, Any]
    ) -> tuple[httpx.Response, bytes]:
        """Returns an answer whose whole body came in time and in size.

        The client's own time-out counts from byte to byte; a trickle would pass it.

        Raises:
          TransientError: it did not.
        """
        deadline_s = time.monotonic() + self._cfg.timeout_s
        content = bytearray()
        with self._client.stream("POST", url, json=body) as response:
            for part in response.iter_bytes():
                content += part
                if len(content) > _MAX_ANSWER_BYTES:
                    raise TransientError(
                        f"{url}: the answer has over {_MAX_ANSWER_BYTES} bytes"
                    )
                if time.monotonic() > deadline_s:
                    raise TransientError(
                        f"{url}: no whole answer in {self._cfg.timeout_s:g} s"
                    )
        return response, bytes(content)

    def _shown(self, content: bytes) -> str:
        text = content[: 4 * _SHOWN_CHARS].decode("utf-8", "replace").strip()
        # Some endpoints quote the key in their answer.
        return text.replace(self._key, "***")[:_SHOWN_CHARS] or "(empty)"


def shown(answer: Mapping[str, Any]) -> str:
    """Returns the beginning of an answer, for messages."""
    return json.dumps(answer)[:_SHOWN_CHARS]


def _checked_key(cfg: PolicyConfig) -> str:
    """Returns the key after all settings have been found usable.

    Raises:
      ConfigError: see `Endpoint`.
    """
    for field in ("base_url", "model", "api_key_env"):
        if not getattr(cfg, field):
            raise ConfigError(f"policy.{field} is empty; kind 'api' needs it")
    if not cfg.base_url.startswith(("http://", "https://")):
        raise ConfigError(
            f"policy.base_url = {cfg.base_url!r}: expected http:// or https://"
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


def _retry_after_s(response: httpx.Response) -> float | None:
    """Returns the seconds that Retry-After asks for; it may hold a date."""
    value = response.headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
