"""Arrays of a checkpoint, as zarr keeps them, read and written a chunk at a time.

Tensorstore opens them. In an array without compression a chunk is a file with its
numbers in row-major order (zarr format 2), so a piece that is one whole chunk is
copied between the file and the caller's memory; tensorstore would take fresh memory
for each.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from mlagent_jax.model.streaming import Buffer

Index = tuple[int | slice, ...]

_NUM_SYNCS = 8


class ChunkedArray:
    """An array on disk, open.

    Attributes:
      shape: of the array.
      dtype: of its numbers.
    """

    def __init__(self, kvstore: dict[str, Any]) -> None:
        """Opens an array that is there; reads no data.

        Args:
          kvstore: tensorstore's description of where it lies.

        Raises:
          ValueError: there is none, or its description is damaged.
        """
        self._set(ts.open({"driver": "zarr", "kvstore": kvstore}, open=True).result())

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        shape: Sequence[int],
        dtype: np.dtype,
        chunk_shape: Sequence[int],
    ) -> "ChunkedArray":
        """Creates an array without compression."""
        array = cls.__new__(cls)
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": f"{folder}/"},
            "metadata": {"compressor": None, "order": "C"},
            # Orbax takes a chunk that is not there for damage.
            "store_data_equal_to_fill_value": True,
        }
        layout = ts.ChunkLayout(chunk_shape=chunk_shape)
        array._set(
            ts.open(
                spec, create=True, dtype=dtype, shape=shape, chunk_layout=layout
            ).result()
        )
        return array

    def _set(self, array: Any) -> None:
        self._array = array
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype: np.dtype = array.dtype.numpy_dtype
        spec = array.spec().to_json()
        metadata = spec["metadata"]
        self._chunk_shape: list[int] = metadata["chunks"]
        self._folder = Path(spec["kvstore"].get("path", ""))
        self._is_plain = (
            spec["kvstore"]["driver"] == "file"
            and metadata["compressor"] is None
            and not metadata.get("filters")
            and metadata["order"] == "C"
            and metadata.get("dimension_separator", ".") == "."
        )

    def write(self, index: Index, piece: np.ndarray) -> None:
        """Writes a contiguous piece; `sync` puts it on the disk."""
        file = self._chunk_file(index)
        if file is None:
            self._array[index].write(piece).result()
        else:
            with file.open("wb") as handle:
                handle.write(piece.reshape(-1).view(np.uint8).data)

    def read(self, index: Index, buffer: Buffer) -> np.ndarray:
        """Returns a piece, in the buffer.

        Raises:
          ValueError: the file is shorter than its chunk.
          OSError: it cannot be read.
        """
        out = buffer.array(self._array[index].shape, self.dtype)
        file = self._chunk_file(index)
        if file is None:
            ts.array(out, write=True, copy=False).write(self._array[index]).result()
            return out
        with file.open("rb") as handle:
            num_bytes = handle.readinto(out.reshape(-1).view(np.uint8).data)
        if num_bytes != out.nbytes:
            raise ValueError(f"{file}: {num_bytes} bytes, expected {out.nbytes}")
        return out

    def _chunk_file(self, index: Index) -> Path | None:
        """Returns the file of a piece that is one whole chunk of a plain array."""
        if not self._is_plain:
            return None
        numbers: list[str] = []
        whole = [*index, *[slice(None)] * (len(self.shape) - len(index))]
        for part, size, chunk in zip(whole, self.shape, self._chunk_shape, strict=True):
            if isinstance(part, int):
                part = slice(part, part + 1)
            start, stop, _ = part.indices(size)
            if stop - start != chunk or start % chunk:
                return None
            numbers.append(str(start // chunk))
        return self._folder / ".".join(numbers)


def sync_tree(folder: Path) -> None:
    """Puts every file below a folder on the disk.

    Raises:
      OSError: it cannot be.
    """
    with ThreadPoolExecutor(_NUM_SYNCS) as threads:
        list(threads.map(_sync, [folder, *folder.rglob("*")]))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
