"""Where every weight of a Hugging Face folder lies in our parameter tree.

A leaf of ours has Hugging Face's name (`layers/mlp/up_proj/kernel` is
`model.layers.<l>.mlp.up_proj.weight`), its kernel transposed, its head axis split
and its layers stacked; nothing else changes, so weights survive a round trip bit
for bit. Names and numpy arrays only; files are the business of model/hf.py.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mlagent_jax.model.qwen2 import Params
from mlagent_jax.model.streaming import Buffer, Slot

LeafPath = tuple[str, ...]

_VOCAB_ROWS = 8_192  # of a leaf as long as the vocabulary, in one piece
_TILE = 256  # of a transposition: what it reads and writes stays in the cache
_PAD = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a leaf that is small enough to be held: a layer, or some tokens' rows.

    Attributes:
      path: of the leaf.
      index: what selects the piece in the leaf.
      name: of Hugging Face's tensor.
      rows: of that tensor.
    """

    path: LeafPath
    index: tuple[int | slice, ...]
    name: str
    rows: slice

    @property
    def is_transposed(self) -> bool:
        """Whether numbers change places on the way; else only shapes do."""
        return self.path[-1] == "kernel"

    def to_hf(self, array: np.ndarray, buffer: Buffer | None = None) -> np.ndarray:
        """Returns rows of the tensor from a piece of our leaf.

        Args:
          array: the piece.
          buffer: where the rows go if they are transposed; None for new memory.
        """
        shape = _hf_shape(self.path, array.shape)
        if not self.is_transposed:
            return array.reshape(shape)
        return _transpose(array.reshape(shape[::-1]), buffer)

    def from_hf(
        self,
        tensor: np.ndarray,
        leaf_shape: Sequence[int],
        buffer: Buffer | None = None,
    ) -> np.ndarray:
        """Returns a piece of our leaf from rows of the tensor.

        Args:
          tensor: the rows.
          leaf_shape: of the whole leaf.
          buffer: where the piece goes if it is transposed; None for new memory.
        """
        shape = list(leaf_shape[1:] if self.path[0] == "layers" else leaf_shape)
        for axis, part in enumerate(self.index):
            if isinstance(part, slice):
                start, stop, _ = part.indices(shape[axis])
                shape[axis] = stop - start
        return (_transpose(tensor, buffer) if self.is_transposed else tensor).reshape(
            shape
        )


# May leave what it returns in the slot; called in threads.
ReadPiece = Callable[[Piece, Slot], np.ndarray]


def pieces(template: Params) -> Iterator[Piece]:
    """Yields all of a model's weights in the order of the files: layer by layer."""
    by_path = leaves(template)
    stacked = {path: leaf for path, leaf in by_path.items() if path[0] == "layers"}
    for path, leaf in by_path.items():
        if path in stacked:
            continue
        is_column = path[-1] == "kernel"  # lm_head: tokens are its last axis
        num_tokens = leaf.shape[-1] if is_column else leaf.shape[0]
        for start in range(0, num_tokens, _VOCAB_ROWS):
            rows = slice(start, min(start + _VOCAB_ROWS, num_tokens))
            index = (slice(None), rows) if is_column else (rows,)
            yield Piece(path=path, index=index, name=hf_name(path, None), rows=rows)
    for layer in range(next(iter(stacked.values())).shape[0]):
        for path in stacked:
            name = hf_name(path, layer)
            yield Piece(path=path, index=(layer,), name=name, rows=slice(None))


def leaf_path(keys: Sequence[Any]) -> LeafPath:
    """Returns the path that jax's tree functions give as `keys`."""
    return tuple(key.key for key in keys)


def leaves(params: Params) -> dict[LeafPath, Any]:
    """Returns path -> leaf."""
    pairs = jax.tree_util.tree_flatten_with_path(params)[0]
    return {leaf_path(keys): leaf for keys, leaf in pairs}


def hf_name(path: LeafPath, layer: int | None) -> str:
    """Returns Hugging Face's name of a leaf, or of one layer of it."""
    *module, leaf = path
    kind = "bias" if leaf == "bias" else "weight"
    if layer is not None:
        module[0] = f"layers.{layer}"
    prefix = [] if module[0] == "lm_head" else ["model"]
    return ".".join([*prefix, *module, kind])


def _hf_shape(path: LeafPath, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns Hugging Face's shape of one layer of a leaf of ours."""
    if path[-1] != "kernel":
        return shape if path[-1] == "embedding" else (math.prod(shape),)
    num_inputs = 2 if path[-2] == "o_proj" else 1
    return math.prod(shape[num_inputs:]), math.prod(shape[:num_inputs])


def _transpose(matrix: np.ndarray, buffer: Buffer | None) -> np.ndarray:
    """Returns the transposed matrix, contiguous: five times as fast as numpy's.

    Each tile is copied first: in the matrix its rows begin at places that the cache
    cannot hold together.
    """
    bits = matrix.view(f"u{matrix.dtype.itemsize}")
    out = (buffer or Buffer()).array(matrix.shape[::-1], bits.dtype)
    copied = np.empty((_TILE, _TILE + _PAD), bits.dtype)
    num_rows, num_columns = matrix.shape
    for row in range(0, num_rows, _TILE):
        rows = slice(row, min(row + _TILE, num_rows))
        for column in range(0, num_columns, _TILE):
            columns = slice(column, min(column + _TILE, num_columns))
            tile = copied[: rows.stop - row, : columns.stop - column]
            tile[:] = bits[rows, columns]
            out[columns, rows] = tile.T
    return out.view(matrix.dtype)


def expected_shapes(template: Params) -> dict[str, tuple[int, ...]]:
    """Returns tensor name -> shape, in the order of `pieces`."""
    by_path = leaves(template)
    shapes: dict[str, tuple[int, ...]] = {}
    for piece in pieces(template):
        shape = by_path[piece.path].shape
        is_stacked = piece.path[0] == "layers"
        shapes[piece.name] = _hf_shape(piece.path, shape[1:] if is_stacked else shape)
    return shapes
