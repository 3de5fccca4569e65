"""Reads a CSV file that nobody has seen before, and says what its columns hold."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import pandas as pd

from mlagent_jax.env.task_rules import nearest_name
from mlagent_jax.errors import TaskError

ColumnKind = Literal["number", "date", "group", "text", "constant", "id"]

_BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
_DELIMITERS = ",;\t|"
_ID_NAME = re.compile(
    r"(.*[\W_])?(id|index|uuid|guid)|.*[a-z]Id|.*ID|unnamed: \d+", re.I
)
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}")
_FIRST_NUMBER = re.compile(r"^\s*(\d{1,2})[-/.]\d{1,2}[-/.]\d{2,4}")
_MONTHS = 12
_DATE_FRAC = 0.95
_MAX_GROUPS = 100
_MAX_GROUP_FRAC = 0.2
_MAX_GROUP_CHARS = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class CsvTable:
    """A table of texts as they stand in the file; empty cells are missing.

    Attributes:
      cells: one column a column of the file.
      kinds: what each column holds.
      notes: what was assumed, for the user.
    """

    cells: pd.DataFrame
    kinds: dict[str, ColumnKind]
    notes: tuple[str, ...]

    def of_kind(self, *kinds: ColumnKind) -> list[str]:
        """Returns the names of the columns of some kinds, in order."""
        return [name for name, kind in self.kinds.items() if kind in kinds]


def read_table(path: Path, encoding: str | None, id_column: str | None) -> CsvTable:
    """Returns the table of a CSV file.

    Args:
      path: the file; its first line names the columns.
      encoding: None guesses.
      id_column: name of the column that names rows; None looks for one.

    Raises:
      TaskError: the file is no table, or has no such column.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path}: {error.strerror}") from error
    notes: list[str] = []
    if encoding is None:
        encoding = _guess_encoding(data)
        if encoding not in {"utf-8", "utf-8-sig"}:
            notes.append(f"not UTF-8: read as {encoding} (--encoding overrides)")
    try:
        header = data.decode(encoding).lstrip().partition("\n")[0]
        delimiter = max(_DELIMITERS, key=header.count)
        cells = pd.read_csv(path, dtype=str, encoding=encoding, sep=delimiter)
    except (ValueError, LookupError, pd.errors.ParserError) as error:
        raise TaskError(f"{path}: cannot be read as a table: {error}") from error
    # An unnamed first column would become the index where rows are one cell longer.
    if not isinstance(cells.index, pd.RangeIndex):
        raise TaskError(f"{path}: rows have more cells than the header")
    names = [" ".join(str(name).split()) for name in cells.columns]
    cells.columns = names
    if len(set(names)) < len(names) or not names:
        raise TaskError(f"{path}: column names must differ: {names}")
    require_column(cells, id_column, "id")
    kinds: dict[str, ColumnKind] = {
        name: _kind_of(cells, name, id_column) for name in names
    }
    return CsvTable(cells=cells, kinds=kinds, notes=tuple(notes))


def require_column(cells: pd.DataFrame, name: str | None, flag: str) -> None:
    """Checks that `name`, if given, is a column.

    Raises:
      TaskError: it is not; the nearest name is given.
    """
    if name is not None and name not in cells.columns:
        near = nearest_name(name, map(str, cells.columns))
        raise TaskError(f"--{flag}={name}: no such column{near}")


def is_day_first(values: pd.Series) -> bool:
    """Returns whether dates such as 31/12/2020 put the day before the month."""
    first = values.dropna().str.extract(_FIRST_NUMBER)[0].dropna()
    return bool((first.astype(int) > _MONTHS).any())


def parse_numbers(values: pd.Series) -> pd.Series | None:
    """Returns the values as numbers; None if some value that is there is none."""
    numbers = cast(pd.Series, pd.to_numeric(values, errors="coerce"))
    return numbers if numbers.isna().equals(values.isna()) else None


def _guess_encoding(data: bytes) -> str:
    for mark, encoding in _BOMS.items():
        if data.startswith(mark):
            return encoding
    candidates: Sequence[str] = ("utf-8", "cp1252")
    for encoding in candidates:
        try:
            data.decode(encoding)
            return encoding
        except UnicodeDecodeError:
            continue
    return "latin-1"


def _kind_of(cells: pd.DataFrame, name: str, id_column: str | None) -> ColumnKind:
    values = cast(pd.Series, cells[name])
    given = values.dropna()
    if name == id_column:
        return "id"
    num_different = len(set(given))
    if num_different + (len(given) < len(values)) <= 1 or given.empty:
        return "constant"
    if num_different == len(values) and _ID_NAME.fullmatch(name):
        return "id"
    if parse_numbers(values) is not None:
        return "number"
    if given.str.contains(_DATE).mean() >= _DATE_FRAC:
        parsed = pd.to_datetime(given, errors="coerce", format="mixed", utc=True)
        if parsed.notna().mean() >= _DATE_FRAC:
            return "date"
    is_short = given.str.len().mean() <= _MAX_GROUP_CHARS
    limit = min(_MAX_GROUPS, max(10, _MAX_GROUP_FRAC * len(given)))
    return "group" if is_short and num_different <= limit else "text"
