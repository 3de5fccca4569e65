"""Several examples in one row: which go together, and the arrays that result.

Rows are filled best-fit: an example goes to the fullest open row that has room. No
more than a window of rows is open at once, so a row's examples come from nearby in
the given order, and packing takes time linear in their number.

Axis letters: B rows, T token positions.
"""

from collections.abc import Sequence

import numpy as np

from mlagent_jax.data.examples import TokenExample

_WINDOW = 64


def pack_rows(
    lengths: Sequence[int], row_length: int, window: int = _WINDOW
) -> list[list[int]]:
    """Returns the example numbers of each row; every example is in one row.

    Depends on its arguments alone. Rows are in the order in which they were closed.

    Args:
      lengths: tokens of each example, at most `row_length`.
      row_length: tokens that fit into a row.
      window: rows that are open at once; the fullest is closed for a new one.
    """
    closed: list[list[int]] = []
    rows: list[tuple[int, list[int]]] = []  # (tokens left, examples)
    for number, length in enumerate(lengths):
        fitting = [i for i, (left, _) in enumerate(rows) if left >= length]
        if fitting:
            place = min(fitting, key=lambda i: rows[i][0])
            left, members = rows[place]
            rows[place] = (left - length, [*members, number])
        else:
            if len(rows) == window:
                fullest = min(range(window), key=lambda i: rows[i][0])
                closed.append(rows.pop(fullest)[1])
            rows.append((row_length - length, [number]))
    return closed + [members for _, members in rows]


def fill_row(
    examples: Sequence[TokenExample], seq_len: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns (tokens_T, positions_T, segment_ids_T, loss_mask_T) of one row.

        tokens       a a a b b .
        positions    0 1 2 0 1 2
        segment ids  1 1 1 2 2 0

    A token sees those of its own segment, so the loss of an example is what it would
    be in a row of its own.
    """
    tokens_T = np.full(seq_len, pad_id, np.int32)
    positions_T = np.zeros(seq_len, np.int32)
    segment_ids_T = np.zeros(seq_len, np.int32)
    loss_mask_T = np.zeros(seq_len, np.float32)
    start = 0
    for number, example in enumerate(examples):
        length = len(example.tokens_T)
        place = slice(start, start + length)
        tokens_T[place] = example.tokens_T
        positions_T[place] = np.arange(length)
        segment_ids_T[place] = number + 1
        loss_mask_T[place] = example.loss_mask_T
        start += length
    # Padding counts on, so that an unpacked row has positions 0, 1, 2, ...
    positions_T[start:] = np.arange(len(positions_T) - start) + (
        positions_T[start - 1] + 1 if start else 0
    )
    return tokens_T, positions_T, segment_ids_T, loss_mask_T
