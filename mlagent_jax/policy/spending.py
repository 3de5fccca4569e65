"""What a run has spent on an endpoint, and why it should stop asking there.

Every answer that was paid for is counted, also one that led to nothing. Who keeps the
sum between sessions gives what was spent before and is told of every charge.
"""

import threading
from collections.abc import Callable
from typing import Final

from mlagent_jax.config import PolicyConfig

# Where an endpoint reports no usage: a usual ratio for English and code.
CHARS_A_TOKEN: Final = 4.0
_FAILURES_A_THREAD: Final = 2


class Spending:
    """Counts tokens and money of one endpoint; used from many threads.

    Args:
      cfg: prices and limits.
      before: (prompt, reply) tokens of earlier sessions.
      on_charge: told of the (prompt, reply) tokens of every answer, one at a time.
    """

    def __init__(
        self,
        cfg: PolicyConfig,
        *,
        before: tuple[float, float] = (0.0, 0.0),
        on_charge: Callable[[float, float], object] | None = None,
    ) -> None:
        self._cfg = cfg
        self._on_charge = on_charge
        self._lock = threading.Lock()
        self._prompt_tokens, self._reply_tokens = before
        self._failures = 0
        self._last_error = ""

    @property
    def tokens(self) -> float:
        """Prompt and reply tokens so far."""
        return self._prompt_tokens + self._reply_tokens

    @property
    def usd(self) -> float:
        """Money so far, at the configured prices."""
        return self._cfg.usd(self._prompt_tokens, self._reply_tokens)

    def charge(self, prompt_tokens: float, reply_tokens: float) -> None:
        """Adds an answer."""
        with self._lock:
            self._prompt_tokens += prompt_tokens
            self._reply_tokens += reply_tokens
            if self._on_charge is not None:
                self._on_charge(prompt_tokens, reply_tokens)

    def succeeded(self) -> None:
        """Notes a request that was answered."""
        with self._lock:
            self._failures = 0

    def failed(self, error: str) -> None:
        """Notes a request that was given up."""
        with self._lock:
            self._failures += 1
            self._last_error = error

    def stop_reason(self) -> str:
        """Returns why no further work should begin, "" if nothing speaks against it."""
        cfg = self._cfg
        if cfg.max_tokens and self.tokens >= cfg.max_tokens:
            return (
                f"{self.tokens:,.0f} tokens are spent on {cfg.model}, the limit is "
                f"max_tokens = {cfg.max_tokens:,}"
            )
        if cfg.max_usd and self.usd >= cfg.max_usd:
            return (
                f"{self.usd:.4f} USD are spent on {cfg.model}, the limit is "
                f"max_usd = {cfg.max_usd:g}"
            )
        if self._failures >= _FAILURES_A_THREAD * cfg.max_concurrency:
            return (
                f"{self._failures} requests in a row failed at {cfg.base_url}; the "
                f"last: {self._last_error}"
            )
        return ""
