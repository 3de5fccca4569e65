"""Ending a run cleanly when its machine is taken away (preemption) or on Ctrl-C.

While a `StopSignal` is entered, SIGTERM and SIGINT are remembered. The training loop
looks between two updates, where all hosts agree on it, saves and ends. Work on the
host that may take minutes, such as a rollout, is cut short at once instead.
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from mlagent_jax.errors import RunInterruptedError
from mlagent_jax.parallel import hosts

T = TypeVar("T")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Remembers that the process was asked to end; never set before it is entered."""

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._is_interruptible = False
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        """Takes over the signals; to be called from the main thread."""
        for number in _SIGNALS:
            self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def is_set_here(self) -> bool:
        """Returns whether this process received a signal."""
        return self._received is not None

    def is_set(self) -> bool:
        """Returns whether any process of the run received one; all must ask."""
        return any(hosts.gather(self.is_set_here()))

    def interruptible(self, work: Callable[[], T]) -> T | None:
        """Returns what `work` returns, or None if a signal came before it was done.

        Args:
          work: is left where it stands, so nothing may be lost by that, and it must
            not communicate with other hosts. Outside the main thread, which is where
            signals arrive, it is never left.
        """
        if threading.current_thread() is not threading.main_thread():
            return work()
        try:
            self._is_interruptible = True
            return None if self.is_set_here() else work()
        except _Stopped:
            return None
        finally:
            self._is_interruptible = False

    def error(self, what: str) -> RunInterruptedError:
        """Returns what to raise when everything is saved.

        Args:
          what: where the run stands.
        """
        cause = "a signal on another host" if not self._received else self._received
        return RunInterruptedError(
            f"{what}: stopped by {getattr(cause, 'name', cause)}; everything is saved "
            "and the same command continues"
        )

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        is_again = self._received is not None
        self._received = signal.Signals(number)
        if is_again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._is_interruptible:
            self._is_interruptible = False
            raise _Stopped


class _Stopped(BaseException):  # noqa: N818 - control flow, like KeyboardInterrupt
    """Leaves an interruptible block; no handler of errors may keep it."""
