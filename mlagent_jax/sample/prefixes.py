"""Which prompts the rows of the cache hold, to find prefixes worth copying.

Host side only. A row's entry stays when its reply is finished, until another
request takes the row over.

Axes: B rows, T prompt positions.
"""

import numpy as np

_NO_TOKEN = -1


class PrefixTable:
    """The prompt tokens that are cached in each row, all but the last."""

    def __init__(self, num_rows: int, longest: int, chunk_size: int) -> None:
        """Makes an empty table.

        Args:
          num_rows: rows of the cache.
          longest: tokens of the longest prompt.
          chunk_size: prefixes are reused in multiples of it.
        """
        self._tokens_BT = np.full((num_rows, longest), _NO_TOKEN, np.int32)
        self._chunk_size = chunk_size

    def clear(self) -> None:
        """Forgets all rows, because their cache no longer fits the weights."""
        self._tokens_BT[:] = _NO_TOKEN

    def put(self, row: int, prompt_T: np.ndarray) -> None:
        """Records that `row` holds `prompt_T` from now on."""
        num_cached = len(prompt_T) - 1
        self._tokens_BT[row, :num_cached] = prompt_T[:num_cached]
        self._tokens_BT[row, num_cached:] = _NO_TOKEN

    def find(self, prompt_T: np.ndarray) -> tuple[int, int]:
        """Returns (row, number of prompt tokens to copy from it, 0 for none).

        The number is a multiple of the chunk size, or all tokens but the last.
        """
        num_needed = len(prompt_T) - 1
        if num_needed == 0:
            return 0, 0
        is_same_BT = self._tokens_BT[:, :num_needed] == prompt_T[:num_needed]
        shared_B = np.where(
            is_same_BT.all(axis=1), num_needed, is_same_BT.argmin(axis=1)
        )
        row = int(shared_B.argmax())
        shared = int(shared_B[row])
        if shared < num_needed:
            shared -= shared % self._chunk_size
        return row, shared
