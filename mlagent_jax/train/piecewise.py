"""Checkpoints of weights alone, read and written piece by piece.

For conversions of models that are larger than the host's memory: orbax writes the
folder and its records as in train/checkpoint.py, but the arrays of a leaf come from
functions, a piece at a time, and every piece is a chunk of its own; they are put on
the disk before the folder gets its name. Any checkpoint can be read (see
train/chunk_files.py). Checksums are those of train/checkpoint.py; they are sums, so
they can be taken piece by piece.
"""

import asyncio
import dataclasses
import functools
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from mlagent_jax.errors import CheckpointError
from mlagent_jax.model.streaming import Slot, ahead
from mlagent_jax.train.chunk_files import ChunkedArray, Index, sync_tree

_STATE, _META = "state", "meta"
_TYPE = "jax.Array"  # what readers restore the leaves as


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeafPieces:
    """A leaf that is written piece by piece.

    Attributes:
      shape: of the whole leaf.
      dtype: of the stored array.
      indices: of the pieces; together they cover the leaf, and all but the last are
        of the same size.
      parts: for each of them, a function that returns the piece, perhaps in the
        slot that it is given; called in threads.
      checksum: grows while pieces are written.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    indices: Sequence[Index]
    parts: Sequence[Callable[[Slot], np.ndarray]]
    checksum: list[int] = dataclasses.field(default_factory=lambda: [0])

    def chunk_shape(self) -> tuple[int, ...]:
        """Returns the shape of a piece with all axes of the leaf."""
        index = self.indices[0]
        sizes = [
            1 if isinstance(i, int) else len(range(*i.indices(n)))
            for i, n in zip(index, self.shape, strict=False)
        ]
        return (*sizes, *self.shape[len(sizes) :])


def write_checkpoint(
    directory: Path, leaves: Mapping[str, LeafPieces], meta: Mapping[str, Any]
) -> None:
    """Writes step 0 of a stage's `checkpoints` folder; complete or not there.

    Args:
      directory: the `checkpoints` folder; has no step yet.
      leaves: path ("params/norm/scale") -> leaf.
      meta: JSON values.

    Raises:
      CheckpointError: it could not be written.
    """
    partial = directory / "0.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    registry = ocp.type_handlers.create_type_handler_registry(
        (LeafPieces, _PiecesHandler())
    )
    state = ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=registry)
    try:
        with ocp.Checkpointer(state) as checkpointer:
            checkpointer.save(partial / _STATE, args=ocp.args.PyTreeSave(dict(leaves)))
        checksums = {name: leaf.checksum[0] for name, leaf in leaves.items()}
        record = {"meta": dict(meta), "checksums": checksums}
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            checkpointer.save(partial / _META, args=ocp.args.JsonSave(record))
        sync_tree(partial)
        partial.rename(directory / "0")
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{directory}: could not write a checkpoint ({error!s:.300})"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class CheckpointPieces:
    """The leaves of one checkpoint below a path, read piece by piece.

    Attributes:
      step_dir: the checkpoint.
    """

    def __init__(self, step_dir: Path, prefix: str) -> None:
        """Opens the arrays; reads no data.

        Raises:
          CheckpointError: the checkpoint is damaged.
        """
        self.step_dir = step_dir
        self._state = step_dir / _STATE
        self._prefix = prefix + "/"
        self._checksums: dict[str, int] = {}
        self._lock = threading.Lock()
        try:
            with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
                record = checkpointer.restore(step_dir / _META)
            names = [n for n in record["checksums"] if n.startswith(self._prefix)]
            self._expected = {n: record["checksums"][n] for n in names}
            self._arrays = {n: self._open(n) for n in names}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from error

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns path without the prefix -> shape."""
        return {
            name.removeprefix(self._prefix): array.shape
            for name, array in self._arrays.items()
        }

    def dtype(self) -> np.dtype:
        """Returns the widest type among the leaves."""
        return np.result_type(*(array.dtype for array in self._arrays.values()))

    def read(self, path: str, index: Index, slot: Slot) -> np.ndarray:
        """Returns a piece of the leaf at `path`, in the slot.

        Raises:
          CheckpointError: its files are damaged.
        """
        name = self._prefix + path
        try:
            piece = self._arrays[name].read(index, slot.leaf)
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error
        bits = _sum(piece)
        with self._lock:
            self._checksums[name] = _add(self._checksums.get(name, 0), bits)
        return piece

    def check(self) -> None:
        """Compares the sums of what was read, once all pieces were read.

        Raises:
          CheckpointError: a leaf is not what was saved.
        """
        wrong = [n for n, v in self._checksums.items() if v != self._expected[n]]
        if wrong:
            raise self._damaged(ValueError(f"wrong checksums of {wrong}"))

    def _open(self, name: str) -> ChunkedArray:
        if ocp.type_handlers.is_ocdbt_checkpoint(self._state):
            base = {"driver": "file", "path": f"{self._state}/"}
            store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        else:
            store = {"driver": "file", "path": f"{self._state}/{name}/"}
        return ChunkedArray(store)

    def _damaged(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"checkpoint {self.step_dir} is damaged ({type(error).__name__}: "
            f"{error!s:.300}); remove it to use the one before"
        )


class _PiecesHandler(ocp.type_handlers.TypeHandler):
    """Writes `LeafPieces` as zarr arrays; readers use orbax's own handler."""

    def typestr(self) -> str:
        """Returns the type that the folder's records name."""
        return _TYPE

    async def metadata(self, infos: Sequence[Any]) -> Sequence[Any]:
        """Is not needed: nothing is read through this handler."""
        raise NotImplementedError

    async def deserialize(
        self, infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[Any]:
        """Is not needed: nothing is read through this handler."""
        raise NotImplementedError

    async def serialize(
        self,
        values: Sequence[LeafPieces],
        infos: Sequence[Any],
        args: Sequence[Any] | None = None,
    ) -> Sequence[Any]:
        """Writes all leaves, one piece after the other."""
        for info in infos:
            await info.await_path_creation()
        paths = [Path(info.parent_dir / info.name) for info in infos]
        await asyncio.to_thread(_write_leaves, paths, values)
        return []


def _write_leaves(paths: Sequence[Path], leaves: Sequence[LeafPieces]) -> None:
    """Writes all pieces; the next ones are made while one is written."""
    arrays = [
        ChunkedArray.create(
            path, shape=leaf.shape, dtype=leaf.dtype, chunk_shape=leaf.chunk_shape()
        )
        for path, leaf in zip(paths, leaves, strict=True)
    ]
    places = [
        (array, index)
        for array, leaf in zip(arrays, leaves, strict=True)
        for index in leaf.indices
    ]
    lock = threading.Lock()
    pieces = ahead(
        functools.partial(_make, leaf, part, lock)
        for leaf in leaves
        for part in leaf.parts
    )
    for (array, index), piece in zip(places, pieces, strict=True):
        array.write(index, piece)


def _make(
    leaf: LeafPieces,
    part: Callable[[Slot], np.ndarray],
    lock: threading.Lock,
    slot: Slot,
) -> np.ndarray:
    piece = np.ascontiguousarray(part(slot), leaf.dtype)
    bits = _sum(piece)
    with lock:
        leaf.checksum[0] = _add(leaf.checksum[0], bits)
    return piece


def _sum(piece: np.ndarray) -> int:
    """Returns the sum of the numbers' bits."""
    return int(piece.view(f"u{piece.dtype.itemsize}").sum(dtype=np.uint64))


def _add(checksum: int, bits: int) -> int:
    """Returns the checksum of train/checkpoint.py with one more piece."""
    return (checksum + bits) % (1 << 32)
