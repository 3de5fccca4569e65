"""From token examples to padded batches, on grain: few shapes, exact resume.

Examples are grouped by the padded length that they fit, so that a run compiles one
program a length; or several are packed into each row of the greatest length. An
epoch is every example once, in an order that follows from the seed and the number
of the epoch; batches of different lengths are mixed. A batch is found by its index
alone, so continuing after a crash repeats or skips nothing.

Axis letters: B rows, T token positions.
"""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import grain
import jax
import numpy as np

from mlagent_jax.data.examples import TokenExample, truncate
from mlagent_jax.data.packing import fill_row, pack_rows
from mlagent_jax.errors import DataError

_log = logging.getLogger(__name__)

Array = Any  # numpy as it comes from here; jax.Array once it is placed on devices


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SftBatch:
    """Rows of tokens with those to learn marked.

    Attributes:
      tokens_BT: int32 token ids; padding is the tokenizer's pad id.
      positions_BT: int32, 0, 1, 2, ... in every sequence; padding counts on.
      segment_ids_BT: int32, 0 on padding; 1, 2, ... on the sequences of a row.
      loss_mask_BT: float32, 1.0 on tokens whose log-probability is trained.
    """

    tokens_BT: Array
    positions_BT: Array
    segment_ids_BT: Array
    loss_mask_BT: Array


def split_examples(
    examples: Sequence[TokenExample], eval_frac: float, seed: int
) -> tuple[list[TokenExample], list[TokenExample]]:
    """Returns (examples to train on, examples held back), whole trajectories each.

    Which trajectories are held back follows from their ids and the seed.

    Args:
      examples: of any number of trajectories.
      eval_frac: part of the trajectories to hold back, rounded up.
      seed: of the run.
    """

    def rank(trajectory_id: str) -> str:
        return hashlib.sha256(f"{seed}/{trajectory_id}".encode()).hexdigest()

    ids = sorted({e.trajectory_id for e in examples}, key=rank)
    num_held_back = int(np.ceil(eval_frac * len(ids)))
    held_back = set(ids[:num_held_back])
    train = [e for e in examples if e.trajectory_id not in held_back]
    return train, [e for e in examples if e.trajectory_id in held_back]


def make_batches(
    examples: Iterable[TokenExample],
    *,
    batch_size: int,
    seq_lens: Sequence[int],
    pad_id: int,
    seed: int | None,
    is_packed: bool = False,
) -> grain.MapDataset[SftBatch]:
    """Returns one epoch of batches; `.repeat()` reshuffles in every further one.

    A batch that an epoch cannot fill is completed by rows without tokens.

    Args:
      examples: those longer than the longest of `seq_lens` are cut behind the last
        whole reply that fits, or dropped if none does, with a warning that counts.
      batch_size: B.
      seq_lens: allowed T, ascending.
      pad_id: token of padding.
      seed: of the order; None keeps the given order within a length.
      is_packed: put as many examples into a row of the greatest length as fit. What
        shares a row stays the same in all epochs.

    Raises:
      DataError: no example is left.
    """
    buckets: dict[int, list[TokenExample]] = {n: [] for n in seq_lens}
    num_cut = num_dropped = 0
    for example in examples:
        fitting = truncate(example, seq_lens[-1])
        if fitting is None:
            num_dropped += 1
            continue
        num_cut += fitting is not example
        length = next(n for n in seq_lens if len(fitting.tokens_T) <= n)
        buckets[length].append(fitting)
    if num_dropped or num_cut:
        _log.warning(
            "of the examples longer than %d tokens, %d were cut behind a reply and %d "
            "dropped because not one reply fits",
            seq_lens[-1],
            num_cut,
            num_dropped,
        )
    rows = {n: [[example] for example in bucket] for n, bucket in buckets.items()}
    if is_packed:
        rows = {seq_lens[-1]: _pack(buckets, seq_lens[-1], seed)}
    datasets: list[grain.MapDataset[SftBatch]] = []
    for number, (seq_len, bucket) in enumerate(rows.items()):
        if not bucket:
            continue
        dataset = grain.MapDataset.source(bucket)
        if seed is not None:
            dataset = dataset.shuffle(seed=_shuffle_seed(seed, number))
        fill = functools.partial(
            fill_batch, num_rows=batch_size, seq_len=seq_len, pad_id=pad_id
        )
        datasets.append(dataset.batch(batch_size, batch_fn=fill))
    if not datasets:
        raise DataError(
            f"no example of at most {seq_lens[-1]} tokens ({num_dropped} longer ones); "
            "collect trajectories, or raise the longest of seq_lens"
        )
    mixed = grain.MapDataset.concatenate(datasets)
    if seed is None or len(datasets) == 1:
        return mixed
    return mixed.shuffle(seed=_shuffle_seed(seed, len(buckets)))


def fill_batch(
    rows: Sequence[Sequence[TokenExample]], *, num_rows: int, seq_len: int, pad_id: int
) -> SftBatch:
    """Returns a (num_rows, seq_len) batch; rows beyond those given are padding."""
    empty = [()] * (num_rows - len(rows))
    filled = [fill_row(examples, seq_len, pad_id) for examples in (*rows, *empty)]
    tokens_BT, positions_BT, segment_ids_BT, loss_mask_BT = map(
        np.stack, zip(*filled, strict=True)
    )
    return SftBatch(
        tokens_BT=tokens_BT,
        positions_BT=positions_BT,
        segment_ids_BT=segment_ids_BT,
        loss_mask_BT=loss_mask_BT,
    )


def _pack(
    buckets: dict[int, list[TokenExample]], row_length: int, seed: int | None
) -> list[list[TokenExample]]:
    """Returns rows of examples that belong together, mixed before they are packed."""
    examples = [example for bucket in buckets.values() for example in bucket]
    if seed is not None:
        order = np.random.default_rng(_shuffle_seed(seed, -1)).permutation(
            len(examples)
        )
        examples = [examples[i] for i in order]
    lengths = [len(example.tokens_T) for example in examples]
    return [[examples[i] for i in row] for row in pack_rows(lengths, row_length)]


def _shuffle_seed(seed: int, number: int) -> int:
    """Returns a seed of 32 bits, as grain wants it, for one of several orders."""
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
