"""Weights of a Hugging Face folder <-> our parameter tree, strict both ways.

Which weight is which is said in model/hf_layout.py. Folders are read and written
piece by piece, whatever their size; `load_folder` holds one leaf at a time.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mlagent_jax.config import ModelConfig, RunConfig
from mlagent_jax.errors import CheckpointError, ConfigError
from mlagent_jax.model.hf_config import config_from_json, config_to_json
from mlagent_jax.model.hf_layout import (
    LeafPath,
    Piece,
    ReadPiece,
    expected_shapes,
    leaf_path,
    leaves,
    pieces,
)
from mlagent_jax.model.qwen2 import Params, abstract_params
from mlagent_jax.model.safetensors_files import (
    DTYPES,
    StoredTensor,
    TensorWriter,
    read_header,
)
from mlagent_jax.model.streaming import Slot, ahead
from mlagent_jax.parallel.sharding import place, tree_shardings

Dtype = Literal["float32", "bfloat16"]

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MAX_FILE_BYTES = 5_000_000_000
# Fields of ModelConfig that say how arrays are used, not what they are.
_FREE_FIELDS = ("compute_dtype", "remat", "attention", "max_position_embeddings")


class HfFolder:
    """The weights of a Hugging Face folder, read piece by piece.

    Attributes:
      config: of the model.
      template: our parameters as `jax.ShapeDtypeStruct`s.
      dtype: the widest type among the tensors.
    """

    def __init__(self, path: Path) -> None:
        """Reads the headers of all files and checks them.

        Raises:
          ConfigError: the model is not supported.
          CheckpointError: see `load_folder`.
        """
        self.config = load_config(path)
        self.template = abstract_params(self.config)
        self._shapes = {p: leaf.shape for p, leaf in leaves(self.template).items()}
        self._tensors = _open_tensors(path)
        _check_tensors(path, self._tensors, expected_shapes(self.template))
        is_bfloat16 = all(t.dtype == "BF16" for t in self._tensors.values())
        self.dtype: Dtype = "bfloat16" if is_bfloat16 else "float32"

    def read(self, piece: Piece, slot: Slot) -> np.ndarray:
        """Returns a piece in the type of its file, in the slot.

        Raises:
          CheckpointError: the file has become shorter.
        """
        buffer = slot.file if piece.is_transposed else slot.leaf
        tensor = self._tensors[piece.name].read(piece.rows, buffer)
        return piece.from_hf(tensor, self._shapes[piece.path], slot.leaf)

    def read_leaf(self, path: LeafPath) -> np.ndarray:
        """Returns a whole leaf in float32."""
        out = np.empty(self._shapes[path], np.float32)
        slot = Slot()
        for piece in pieces(self.template):
            if piece.path == path:
                out[piece.index] = self.read(piece, slot)
        return out


def load_config(path: Path) -> ModelConfig:
    """Returns the configuration of a Hugging Face folder.

    Raises:
      ConfigError: no config.json, or a model that is not supported.
    """
    file = path / _CONFIG
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; expected a Hugging Face folder")
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file}: expected a JSON object")
    return config_from_json(config)


def model_of_run(config: RunConfig) -> ModelConfig:
    """Returns the model that a run trains.

    A run that starts from a folder may say besides what the folder cannot: dtype of
    activations, remat, attention kernel.

    Raises:
      ConfigError: the folder is unusable, or of another shape than `config.model`.
    """
    if config.init is None:
        assert config.model is not None  # RunConfig has at least one of them
        return config.model
    found = load_config(Path(config.init))
    if config.model is None:
        return found
    names = [f.name for f in dataclasses.fields(ModelConfig)]
    different = [
        f"  model.{name} = {getattr(config.model, name)}, there {getattr(found, name)}"
        for name in names
        if name not in _FREE_FIELDS
        and getattr(config.model, name) != getattr(found, name)
    ]
    if different:
        raise ConfigError(
            f"init = {config.init}: its config.json is not of the model in the config:"
            "\n" + "\n".join(different)
        )
    return config.model


def load_folder(path: Path, mesh: Mesh | None = None) -> tuple[ModelConfig, Params]:
    """Returns configuration and float32 parameters of a Hugging Face folder.

    Args:
      path: holds config.json and model.safetensors, or its shards and index.
      mesh: where the parameters go, by the rules of parallel/sharding.py; None
        leaves them on the default device.

    Raises:
      ConfigError: the model is not supported, or does not fit the mesh.
      CheckpointError: a file is missing or damaged, or tensors are missing,
        unexpected, mis-shaped or of another type; all of them are listed.
    """
    folder = HfFolder(path)
    if mesh is None:
        shardings = jax.tree.map(lambda _: jax.devices()[0], folder.template)
    else:
        shardings = tree_shardings(mesh, folder.template)

    def load_leaf(keys: Any, leaf: Any, sharding: Any) -> jax.Array:
        del leaf
        array = folder.read_leaf(leaf_path(keys))
        # Another process may hold other devices of the mesh.
        return (
            jax.device_put(array, sharding) if mesh is None else place(array, sharding)
        )

    params = jax.tree_util.tree_map_with_path(load_leaf, folder.template, shardings)
    return folder.config, params


def save_folder(
    path: Path,
    cfg: ModelConfig,
    params: Params,
    dtype: Dtype = "float32",
    *,
    end_ids: Sequence[int] = (),
    pad_id: int | None = None,
    save_tokenizer: Callable[[Path], None] | None = None,
    max_file_bytes: int = _MAX_FILE_BYTES,
) -> None:
    """Writes the folder of `write_folder` from parameters; an older one is replaced.

    Raises:
      CheckpointError: `params` are not those of `cfg`; all differences are listed.
      ConfigError: `path` exists and is not a Hugging Face folder.
    """
    found = {"/".join(path): np.shape(x) for path, x in leaves(params).items()}
    check_shapes(cfg, found, "parameters")
    by_path = leaves(params)
    write_folder(
        path,
        cfg,
        lambda piece, slot: np.asarray(by_path[piece.path][piece.index]),
        dtype,
        end_ids=end_ids,
        pad_id=pad_id,
        save_tokenizer=save_tokenizer,
        max_file_bytes=max_file_bytes,
        overwrite=True,
    )


def write_folder(
    path: Path,
    cfg: ModelConfig,
    read: ReadPiece,
    dtype: Dtype,
    *,
    end_ids: Sequence[int] = (),
    pad_id: int | None = None,
    save_tokenizer: Callable[[Path], None] | None = None,
    max_file_bytes: int = _MAX_FILE_BYTES,
    overwrite: bool = False,
    on_piece: Callable[[int], object] = lambda num_bytes: None,
) -> None:
    """Writes a Hugging Face folder that transformers 4.51 to 5 load.

    The folder appears complete or not at all.

    Args:
      path: the folder.
      cfg: the model.
      read: returns a piece of its weights in our layout; called in threads.
      dtype: of the weights in the files.
      end_ids: tokens that end a reply.
      pad_id: padding token, None for none.
      save_tokenizer: writes tokenizer files into the folder it is given.
      max_file_bytes: larger weights are split over several files and an index.
      overwrite: replace an older Hugging Face folder.
      on_piece: called with the number of bytes of every piece written.

    Raises:
      ConfigError: `path` exists, and is no Hugging Face folder or not to be
        overwritten.
    """
    config = config_to_json(cfg, dtype, end_ids=tuple(end_ids), pad_id=pad_id)
    generation = {"bos_token_id": None, "pad_token_id": pad_id}
    generation["eos_token_id"] = list(end_ids) or None
    template = abstract_params(cfg)
    with new_folder(path, marker=_CONFIG, overwrite=overwrite) as folder:
        shapes = expected_shapes(template)
        writer = TensorWriter(folder, shapes, jnp.dtype(dtype), max_file_bytes)

        def rows_of(piece: Piece, slot: Slot) -> np.ndarray:
            return piece.to_hf(read(piece, slot), slot.rows)

        with writer:
            all_rows = ahead(functools.partial(rows_of, p) for p in pieces(template))
            for piece, rows in zip(pieces(template), all_rows, strict=True):
                writer.write(piece.name, rows)
                on_piece(rows.size * jnp.dtype(dtype).itemsize)
        _write_index(folder, writer.files(), shapes, dtype)
        if save_tokenizer is not None:
            save_tokenizer(folder)
        _write_json(folder / "generation_config.json", generation)
        _write_json(folder / _CONFIG, config)


def _open_tensors(path: Path) -> dict[str, StoredTensor]:
    """Returns tensor name -> where it lies.

    Raises:
      CheckpointError: a file is missing or damaged.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(path):
        tensors |= read_header(file)
    return tensors


def _weight_files(path: Path) -> list[Path]:
    index = path / _INDEX
    names = [_WEIGHTS]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: damaged ({error!r})") from error
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise CheckpointError(f"{path}: missing files {', '.join(missing)}")
    return [path / name for name in names]


def _check_tensors(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    problems = _missing_or_unexpected(expected, tensors)
    for name in sorted(set(tensors) & set(expected)):
        shape, dtype = tensors[name].shape, tensors[name].dtype
        if shape != expected[name]:
            problems.append(f"  {name}: shape {shape}, expected {expected[name]}")
        elif dtype not in DTYPES:
            problems.append(f"  {name}: type {dtype}, expected one of {list(DTYPES)}")
    _raise_if_any(problems, f"{path}: weights do not fit {_CONFIG}")


def check_shapes(
    cfg: ModelConfig, found: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """Refuses weights that are not those of a model.

    Args:
      cfg: the model.
      found: path of a leaf ("layers/mlp/up_proj/kernel") -> shape.
      what: has these weights.

    Raises:
      CheckpointError: leaves are missing, unexpected or mis-shaped; all are listed.
    """
    expected = {"/".join(p): v.shape for p, v in leaves(abstract_params(cfg)).items()}
    problems = _missing_or_unexpected(expected, found)
    problems += [
        f"  {name}: shape {found[name]}, expected {expected[name]}"
        for name in sorted(set(found) & set(expected))
        if found[name] != expected[name]
    ]
    _raise_if_any(problems, f"{what}: weights do not fit the model's configuration")


def _missing_or_unexpected(
    expected: Mapping[str, Any], found: Mapping[str, Any]
) -> list[str]:
    missing = [f"  {name}: missing" for name in sorted(set(expected) - set(found))]
    return missing + [
        f"  {name}: unexpected" for name in sorted(set(found) - set(expected))
    ]


def _raise_if_any(problems: Sequence[str], what: str) -> None:
    if problems:
        lines = "\n".join(problems)
        raise CheckpointError(f"{what}; {len(problems)} differences:\n{lines}")


def _write_index(
    folder: Path,
    files: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: Dtype,
) -> None:
    if len(set(files.values())) == 1:
        return
    num_elements = sum(math.prod(shape) for shape in shapes.values())
    metadata = {"total_size": num_elements * jnp.dtype(dtype).itemsize}
    _write_json(folder / _INDEX, {"metadata": metadata, "weight_map": files})


@contextlib.contextmanager
def new_folder(path: Path, *, marker: str, overwrite: bool) -> Iterator[Path]:
    """Yields a folder that takes the place of `path` when the block succeeds.

    Args:
      path: where the finished folder appears.
      marker: file by which an older folder of the same kind is known.
      overwrite: replace such a folder.

    Raises:
      ConfigError: `path` exists, and is of another kind or not to be overwritten.
    """
    is_free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    if not is_free and not (path / marker).is_file():
        raise ConfigError(
            f"{path} exists and is not what would be written (it has no {marker}); "
            "it is not overwritten"
        )
    if not is_free and not overwrite:
        raise ConfigError(f"{path} exists; remove it, or allow to overwrite it")
    partial, old = (path.with_name(f"{path.name}.{end}") for end in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            os.replace(path, old)
        os.replace(partial, path)
    finally:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
