"""Safetensors files read and written in pieces, with memory for one piece only.

The safetensors library maps whole files into memory (what was read counts as
resident) and writes from a dictionary of whole tensors. The format is simple: eight
bytes with the length of a JSON header, the header with type, shape and place of
every tensor, then the tensors' bytes in row-major order, little-endian.
"""

import dataclasses
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

import ml_dtypes
import numpy as np

from mlagent_jax.errors import CheckpointError
from mlagent_jax.model.streaming import Buffer

DTYPES: dict[str, Any] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH_BYTES = 8
_ALIGNMENT = 8
_MAX_HEADER_BYTES = 100_000_000  # the library's own limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
      file: that holds it.
      offset: of its first byte in the file.
      dtype: name in the file, one of `DTYPES` if this project can read it.
      shape: of the tensor.
    """

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def read(
        self, rows: slice = slice(None), buffer: Buffer | None = None
    ) -> np.ndarray:
        """Returns the tensor, or some of its rows (indices of the first axis).

        Args:
          rows: to read.
          buffer: where the array goes; None for memory of its own.

        Raises:
          CheckpointError: the file has become shorter.
        """
        start, stop, _ = rows.indices(self.shape[0])
        shape = (stop - start, *self.shape[1:])
        dtype = DTYPES[self.dtype]
        row_bytes = math.prod(self.shape[1:]) * dtype.itemsize
        offset = self.offset + start * row_bytes
        array = (buffer or Buffer()).array(shape, dtype)
        with self.file.open("rb") as handle:
            handle.seek(offset)
            num_bytes = handle.readinto(array.reshape(-1).view(np.uint8).data)
        if num_bytes != array.nbytes:
            raise CheckpointError(f"{self.file}: cut short; copy it again")
        return array


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Returns tensor name -> its place, for every tensor of a file.

    Raises:
      CheckpointError: the file is damaged or cut short.
    """
    try:
        return _read_header(file)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(
            f"{file}: damaged or cut short ({error!r}); copy it again"
        ) from error


def _read_header(file: Path) -> dict[str, StoredTensor]:
    size = file.stat().st_size
    with file.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(_LENGTH_BYTES))
        if length > min(size, _MAX_HEADER_BYTES):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = json.loads(handle.read(length))
    header.pop("__metadata__", None)
    start = _LENGTH_BYTES + length
    tensors: dict[str, StoredTensor] = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensor = StoredTensor(
            file=file,
            offset=start + begin,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
        )
        dtype = DTYPES.get(tensor.dtype)
        if dtype and end - begin != math.prod(tensor.shape) * dtype.itemsize:
            raise ValueError(f"{name}: {end - begin} bytes for {tensor.shape}")
        if start + end > size:
            raise ValueError(f"{name} ends at byte {start + end} of {size}")
        tensors[name] = tensor
    return tensors


class TensorWriter:
    """Writes tensors into one file or several, in an order that is given before.

    Used as a context manager; every tensor must have been written when it ends, and
    all are on the disk then.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: np.dtype,
        max_file_bytes: int,
    ) -> None:
        """Plans the files; creates none.

        Args:
          folder: exists.
          shapes: tensor name -> shape, in the order in which they will be written.
          dtype: of all tensors.
          max_file_bytes: larger weights are split over several files.
        """
        self._folder = folder
        self._shapes = shapes
        self._dtype = dtype
        self._plan = _split(shapes, dtype.itemsize, max_file_bytes)
        self._next_file = 0
        self._handle: IO[bytes] | None = None
        self._missing: list[tuple[str, int]] = []  # in the open file: name, bytes
        self._thread = ThreadPoolExecutor(1)
        self._closed: list[Future[None]] = []

    def files(self) -> dict[str, str]:
        """Returns tensor name -> file name."""
        return {
            name: self._file_name(number)
            for number, names in enumerate(self._plan)
            for name in names
        }

    def write(self, name: str, rows: np.ndarray) -> None:
        """Appends the next rows of tensor `name`, cast to the file's type.

        Raises:
          ValueError: it is another tensor's turn.
        """
        if not self._missing:
            self._open_next()
        expected, num_left = self._missing[0]
        data = np.ascontiguousarray(rows, self._dtype)
        if name != expected or data.nbytes > num_left:
            raise ValueError(f"{num_left} bytes of {expected} come next, not {name}")
        cast(IO[bytes], self._handle).write(data.view(np.uint8).data)
        if data.nbytes < num_left:
            self._missing[0] = (expected, num_left - data.nbytes)
        else:
            self._missing.pop(0)
            if not self._missing:
                self._close()

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        is_whole = not self._missing and self._next_file == len(self._plan)
        self._close()
        self._thread.shutdown()
        if kind is None:
            for file in self._closed:
                file.result()
        if kind is None and not is_whole:
            raise ValueError(f"{self._folder}: not all tensors were written")

    def _open_next(self) -> None:
        names = self._plan[self._next_file]
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            size = math.prod(self._shapes[name]) * self._dtype.itemsize
            header[name] = {
                "dtype": _NAMES[self._dtype],
                "shape": list(self._shapes[name]),
                "data_offsets": [offset, offset + size],
            }
            self._missing.append((name, size))
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        handle = (self._folder / self._file_name(self._next_file)).open("wb")
        handle.write(struct.pack("<Q", len(text)) + text)
        self._handle = handle
        self._next_file += 1

    def _file_name(self, number: int) -> str:
        if len(self._plan) == 1:
            return "model.safetensors"
        return f"model-{number + 1:05d}-of-{len(self._plan):05d}.safetensors"

    def _close(self) -> None:
        """Puts the open file on the disk while the next one is written."""
        if self._handle is not None:
            self._closed.append(self._thread.submit(_sync_and_close, self._handle))
            self._handle = None


def _sync_and_close(handle: IO[bytes]) -> None:
    with handle:
        handle.flush()
        os.fsync(handle.fileno())


def _split(
    shapes: Mapping[str, Sequence[int]], item_bytes: int, max_file_bytes: int
) -> list[list[str]]:
    """Returns the tensors of each file."""
    files: list[list[str]] = [[]]
    room = max_file_bytes
    for name, shape in shapes.items():
        num_bytes = math.prod(shape) * item_bytes
        if num_bytes > room and files[-1]:
            files.append([])
            room = max_file_bytes
        files[-1].append(name)
        room -= num_bytes
    return files
