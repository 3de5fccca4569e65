"""Weights that stream through memory, a piece at a time.

For conversions: fresh memory for every piece costs as much as copying it, so pieces
take turns in a few buffers, and the next ones are read and transposed while one is
written.
"""

import collections
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import DTypeLike

_NUM_THREADS = 2


class Buffer:
    """Memory that one array after the other takes; each overwrites the one before."""

    def __init__(self) -> None:
        """Holds nothing yet."""
        self._bytes = np.empty(0, np.uint8)

    def array(self, shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
        """Returns an array with undefined content in the buffer, which grows."""
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if self._bytes.size < num_bytes:
            self._bytes = np.empty(num_bytes, np.uint8)
        return self._bytes[:num_bytes].view(dtype).reshape(shape)


class Slot:
    """The buffers that one piece passes through.

    Attributes:
      file: as it was read, where that is not yet our layout.
      leaf: in our layout.
      rows: in Hugging Face's.
    """

    def __init__(self) -> None:
        """Holds nothing yet."""
        self.file, self.leaf, self.rows = Buffer(), Buffer(), Buffer()


def ahead(parts: Iterable[Callable[[Slot], np.ndarray]]) -> Iterator[np.ndarray]:
    """Yields what each function returns, while the next two run in threads.

    One of them may wait for its file while the other computes.

    Args:
      parts: may leave what they return in the slot that they are given: it is used
        again only after the array that follows was asked for.
    """
    slots = itertools.cycle([Slot() for _ in range(_NUM_THREADS + 1)])
    running: collections.deque[Future[np.ndarray]] = collections.deque()
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        for part, slot in zip(parts, slots, strict=False):
            running.append(threads.submit(part, slot))
            if len(running) > _NUM_THREADS:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
