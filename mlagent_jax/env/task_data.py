"""What a task's prepare.py returns, and the split rules that it may use.

Two records: `PreparedData` for tasks that are two tables, whose rows are shuffled and
numbered by `env.task_files`; `PreparedFiles` for tasks with files of their own layout,
which look after names and order themselves.
"""

# pandas and scikit-learn describe their types only in part; strict mode would report
# nothing but that.
# pyright: standard

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn import model_selection

from mlagent_jax.types import Part, Source

__all__ = [
    "PART_COLUMN",
    "UNSCORED",
    "PreparedData",
    "PreparedFiles",
    "Source",
    "csv_bytes",
    "hex_ids",
    "hold_out",
    "split_parts",
    "split_rows",
]

PART_COLUMN: Final = "part"
UNSCORED: Final = "unscored"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A task of two tables.

    Attributes:
      train: rows that the agent sees, labels included.
      test: hidden rows: feature columns of `train` and the target columns. Targets
        are cut off before the agent sees them. Half of the rows, at random, become
        the selection part, the rest the test part.
      links: further public tables that refer to rows, file name -> table (a graph's
        edges). All columns hold row positions: 0 is the first row of `train`, and
        the rows of `test` count on after the last. They are written with ids instead.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    links: Mapping[str, pd.DataFrame] = dataclasses.field(
        default_factory=dict[str, pd.DataFrame]
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedFiles:
    """A task of files in a layout of its own; ids and order must not tell labels.

    Attributes:
      public: path below data/ -> content, or a file to copy.
      labels: the perfect submission: id column and target columns, one row for every
        id that a submission must hold. An optional column `part` says "selection",
        "test" or "unscored"; without it half of the rows, at random, become each part.
      num_train: how many labelled examples the agent gets.
      classes: allowed labels where they depend on the data, else empty.
    """

    public: Mapping[str, bytes | Path]
    labels: pd.DataFrame
    num_train: int
    classes: tuple[str, ...] = ()


def split_rows(
    table: pd.DataFrame,
    num_train: int,
    links: Mapping[str, pd.DataFrame] | None = None,
) -> PreparedData:
    """Returns the first `num_train` rows for the agent, the rest hidden."""
    hidden = table.tail(len(table) - num_train)
    return PreparedData(train=table.head(num_train), test=hidden, links=links or {})


def hold_out(
    table: pd.DataFrame, test_frac: float, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns (train, test) rows of `table`, shuffled, not stratified.

    This is the split of MLE-bench: scikit-learn's `train_test_split` with
    `random_state=0`, so that the real data is split as there.
    """
    train, test = model_selection.train_test_split(
        table, test_size=test_frac, random_state=seed
    )
    return cast(pd.DataFrame, train), cast(pd.DataFrame, test)


def split_parts(
    groups: Sequence[Any] | npt.NDArray[Any], rng: np.random.Generator
) -> npt.NDArray[np.str_]:
    """Returns the part of every row; rows of one group get the same.

    Args:
      groups: a label per row, e.g. the page that a pixel belongs to.
      rng: decides which half of the groups becomes which part.
    """
    names, group_of_row = np.unique(np.asarray(groups), return_inverse=True)
    parts = np.array(get_args(Part))[np.arange(len(names)) % 2]
    return rng.permutation(parts)[group_of_row]


def csv_bytes(table: pd.DataFrame) -> bytes:
    """Returns a CSV file without the index."""
    return table.to_csv(index=False, lineterminator="\n").encode()


def hex_ids(num: int, digits: int, rng: np.random.Generator) -> list[str]:
    """Returns `num` different random ids of `digits` hexadecimal digits."""
    ids: dict[str, None] = {}
    while len(ids) < num:
        values = rng.integers(0, 16, (num - len(ids), digits))
        ids |= dict.fromkeys("".join(f"{v:x}" for v in row) for row in values)
    return list(ids)
