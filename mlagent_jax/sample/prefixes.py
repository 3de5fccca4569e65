"""Which prompts the rows of a cache hold, to find prefixes worth copying or reading.

Host side only. `PrefixTable` says what can be copied: a row's entry stays when its
reply is finished, until another request takes the row over. `PrefixStore` says who
reads which row of the store of prefixes.

Axes: B rows, P shared prefixes, N places for readers of one, T prompt positions.
"""

import numpy as np

_NO_TOKEN = -1


class PrefixTable:
    """The prompt tokens that are cached for each row, all but the last."""

    def __init__(self, num_rows: int, longest: int, chunk_size: int) -> None:
        """Makes an empty table.

        Args:
          num_rows: rows of the cache.
          longest: tokens of the longest prompt.
          chunk_size: prefixes are reused in multiples of it.
        """
        self._tokens_BT = np.full((num_rows, longest), _NO_TOKEN, np.int32)
        self._num_shared_B = np.zeros(num_rows, np.int32)
        self._chunk_size = chunk_size

    def clear(self) -> None:
        """Forgets all rows, because their cache no longer fits the weights."""
        self._tokens_BT[:] = _NO_TOKEN

    def put(self, row: int, prompt_T: np.ndarray, num_shared: int = 0) -> None:
        """Records that `row` holds `prompt_T` behind its first tokens from now on."""
        num_cached = len(prompt_T) - 1
        self._tokens_BT[row, :num_cached] = prompt_T[:num_cached]
        self._tokens_BT[row, num_cached:] = _NO_TOKEN
        self._num_shared_B[row] = num_shared

    def find(self, prompt_T: np.ndarray, num_shared: int = 0) -> tuple[int, int]:
        """Returns (row, number of tokens behind the shared ones to copy, 0 for none).

        The number is a multiple of the chunk size, or all tokens but the last.

        Args:
          prompt_T: at least one token.
          num_shared: its first tokens that lie elsewhere.
        """
        num_cached = len(prompt_T) - 1
        if num_cached == num_shared:
            return 0, 0
        is_same_BT = self._tokens_BT[:, :num_cached] == prompt_T[:num_cached]
        same_B = np.where(is_same_BT.all(axis=1), num_cached, is_same_BT.argmin(axis=1))
        same_B[self._num_shared_B != num_shared] = 0
        row = int(same_B.argmax())
        num_copied = max(0, int(same_B[row]) - num_shared)
        if num_copied < num_cached - num_shared:
            num_copied -= num_copied % self._chunk_size
        return row, num_copied


class PrefixStore:
    """The rows of the store of prefixes, and which rows of the lane read them."""

    def __init__(
        self, num_prefixes: int, num_readers: int, longest: int, chunk_size: int
    ) -> None:
        """Makes an empty store.

        Args:
          num_prefixes: P.
          num_readers: N, readers of one row at most.
          longest: tokens of the longest prompt.
          chunk_size: see `PrefixTable`.
        """
        self._num_readers = num_readers
        self._table = PrefixTable(num_prefixes, longest, chunk_size)
        self._readers: list[list[int]] = [[] for _ in range(num_prefixes)]
        self._num_taken = 0
        self._last_taken = [0] * num_prefixes
        self.clear()

    def clear(self) -> None:
        """Forgets what the store holds; nothing may be read."""
        self._table.clear()
        self._keys = [b""] * len(self._readers)

    def has_place(self, prefix_T: np.ndarray) -> bool:
        """Returns whether one more row can read a prefix: all tokens but the last."""
        return self._index_for(prefix_T[:-1].tobytes()) is not None

    def take(self, row: int, prefix_T: np.ndarray) -> tuple[int, int, int]:
        """Gives `row` a prefix to read: (its index, index to copy from, tokens).

        Args:
          row: of the lane.
          prefix_T: the prefix and the token behind it.

        Raises:
          ValueError: `has_place` says no.
        """
        key = prefix_T[:-1].tobytes()
        index = self._index_for(key)
        if index is None:
            raise ValueError("no place for one more prefix")
        self._readers[index].append(row)
        self._num_taken += 1
        self._last_taken[index] = self._num_taken
        if self._keys[index] == key:
            return index, index, len(prefix_T) - 1
        source, num_copied = self._table.find(prefix_T)
        self._table.put(index, prefix_T)
        self._keys[index] = key
        return index, source, num_copied

    def free(self, row: int) -> None:
        """Ends what `row` reads, if anything; the prefix stays for others."""
        for readers in self._readers:
            if row in readers:
                readers.remove(row)

    def readers(self, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (rows_PN, places_B), see `model.cache.Readers`."""
        P, N = len(self._readers), self._num_readers
        rows_PN = np.zeros((P, N), np.int32)
        places_B = np.full(num_rows, P * N, np.int32)
        for index, rows in enumerate(self._readers):
            rows_PN[index, : len(rows)] = rows
            places_B[rows] = index * N + np.arange(len(rows))
        return rows_PN, places_B

    def _index_for(self, key: bytes) -> int | None:
        """Returns a row that has the prefix and room, or else the oldest unread."""
        unread: list[int] = []
        for index, readers in enumerate(self._readers):
            if self._keys[index] == key and len(readers) < self._num_readers:
                return index
            if not readers:
                unread.append(index)
        return min(unread, key=self._last_taken.__getitem__, default=None)
