"""Weights that stream through memory, a piece at a time.

For conversions: fresh memory for every piece costs as much as copying it, so pieces
take turns in a few buffers, and the next one is read and transposed while one is
written.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import DTypeLike


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


def ahead(parts: Iterable[Callable[[Buffer], np.ndarray]]) -> Iterator[np.ndarray]:
    """Yields what each function returns, while the next one runs in a thread.

    Args:
      parts: may leave what they return in the buffer that they are given: it is
        overwritten only after the array that follows was asked for.
    """
    buffers = itertools.cycle((Buffer(), Buffer()))
    current: Future[np.ndarray] | None = None
    with ThreadPoolExecutor(1) as thread:
        for part, buffer in zip(parts, buffers, strict=False):
            following = thread.submit(part, buffer)
            if current is not None:
                yield current.result()
            current = following
        if current is not None:
            yield current.result()
