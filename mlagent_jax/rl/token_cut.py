"""Micro-batches by a budget of padded tokens instead of a number of rows.

Rows are sorted by length and cut so that each micro-batch holds about as many padded
tokens as the others, in one shape for each padded length: short replies are computed
many at a time and never padded to the longest of the rollout. The loss is a sum over
tokens divided by the count of the whole minibatch, so no cut changes it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array


class Cut(NamedTuple):
    """A micro-batch to take out of a batch.

    Attributes:
      rows: int32 indices; the number of rows of the batch stands for an empty row.
      seq_len: columns of it.
    """

    rows: np.ndarray
    seq_len: int


def cut_by_tokens(
    lengths: np.ndarray,
    rows: np.ndarray,
    *,
    seq_lens: Sequence[int],
    max_tokens: int,
    multiple: int,
) -> list[Cut]:
    """Returns micro-batches that hold each of `rows` once, empty rows excepted.

    Args:
      lengths: tokens of every row of the batch; 0 for an empty one.
      rows: indices of the rows to cut.
      seq_lens: padded lengths, ascending; the last fits every row.
      max_tokens: padded tokens of a micro-batch, at most, unless one row a device
        is more.
      multiple: of which the number of its rows must be: the devices of the batch.
    """
    left = np.array([row for row in rows if lengths[row] > 0], np.int32)
    left = left[np.argsort(-lengths[left], kind="stable")]
    cuts: list[Cut] = []
    while len(left):
        seq_len = next(n for n in seq_lens if n >= lengths[left[0]])
        num_rows = max(max_tokens // seq_len // multiple, 1) * multiple
        chosen, left = left[:num_rows], left[num_rows:]
        empty = np.full(num_rows - len(chosen), len(lengths), np.int32)
        cuts.append(Cut(np.concatenate([chosen, empty]), seq_len))
    return cuts


def take_cut(batch: Any, rows_R: Array, seq_len: int) -> Any:
    """Returns the micro-batch (R, seq_len) of a batch; empty rows are zeros."""

    def take(x: Array) -> Array:
        taken = x.at[rows_R].get(mode="fill", fill_value=0)
        return taken[:, :seq_len] if x.ndim > 1 else taken

    return jax.tree.map(take, batch)


def put_cut(batch: Any, micro: Any, rows_R: Array, seq_len: int) -> Any:
    """Returns `batch` with a micro-batch written to where `take_cut` took it."""

    def put(x_BT: Array, micro_RT: Array) -> Array:
        return x_BT.at[rows_R, :seq_len].set(micro_RT, mode="drop")

    return jax.tree.map(put, batch, micro)


def row_lengths(segment_ids_BT: Any) -> np.ndarray:
    """Returns the tokens of each row of a host array."""
    return (np.asarray(segment_ids_BT) > 0).sum(axis=1)
