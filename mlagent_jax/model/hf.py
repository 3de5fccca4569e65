"""Weights of a Hugging Face folder <-> our parameter tree, strict both ways.

A leaf of ours has Hugging Face's name (`layers/mlp/up_proj/kernel` is
`model.layers.<l>.mlp.up_proj.weight`), its kernel transposed, its head axis split
and its layers stacked; nothing else changes, so weights survive a round trip bit
for bit. Both directions hold one leaf or one file in host memory at a time.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
from jax.sharding import Mesh
from safetensors.numpy import save_file

from mlagent_jax.config import ModelConfig, RunConfig
from mlagent_jax.errors import CheckpointError, ConfigError
from mlagent_jax.model.hf_config import config_from_json, config_to_json
from mlagent_jax.model.qwen2 import Params, abstract_params
from mlagent_jax.parallel.sharding import tree_shardings

Dtype = Literal["float32", "bfloat16"]
LeafPath = tuple[str, ...]

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_MAX_FILE_BYTES = 5_000_000_000
# Fields of ModelConfig that say how arrays are used, not what they are.
_FREE_FIELDS = ("compute_dtype", "remat", "attention", "max_position_embeddings")


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
    cfg = load_config(path)
    template = abstract_params(cfg)
    if mesh is None:
        shardings = jax.tree.map(lambda _: jax.devices()[0], template)
    else:
        shardings = tree_shardings(mesh, template)
    with _open_tensors(path) as tensors:
        _check_tensors(path, tensors, _expected_shapes(template))

        def load_leaf(keys: Any, leaf: Any, sharding: Any) -> jax.Array:
            array = _read_leaf(tensors, _leaf_path(keys), leaf.shape)
            return jax.device_put(array, sharding)

        params = jax.tree_util.tree_map_with_path(load_leaf, template, shardings)
    return cfg, params


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
    """Writes a Hugging Face folder that transformers 4.51 to 5 load.

    The folder appears complete or not at all; an older export in its place is
    replaced.

    Args:
      path: the folder.
      cfg: the model.
      params: its weights.
      dtype: of the weights in the files.
      end_ids: tokens that end a reply.
      pad_id: padding token, None for none.
      save_tokenizer: writes tokenizer files into the folder it is given.
      max_file_bytes: larger weights are split over several files and an index.

    Raises:
      CheckpointError: `params` are not those of `cfg`; all differences are listed.
      ConfigError: `path` exists and is not a Hugging Face folder.
    """
    _check_params(cfg, params)
    config = config_to_json(cfg, dtype, end_ids=tuple(end_ids), pad_id=pad_id)
    generation = {"bos_token_id": None, "pad_token_id": pad_id}
    generation["eos_token_id"] = list(end_ids) or None
    with _new_folder(path) as folder:
        _write_weights(folder, params, dtype, max_file_bytes)
        if save_tokenizer is not None:
            save_tokenizer(folder)
        _write_json(folder / "generation_config.json", generation)
        _write_json(folder / _CONFIG, config)


def _leaf_path(keys: Sequence[Any]) -> LeafPath:
    return tuple(key.key for key in keys)


def _leaves(params: Params) -> dict[LeafPath, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {_leaf_path(keys): leaf for keys, leaf in leaves}


def _hf_name(path: LeafPath, layer: int | None) -> str:
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


def _from_hf(path: LeafPath, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return (tensor.T if path[-1] == "kernel" else tensor).reshape(shape)


def _to_hf(path: LeafPath, array: np.ndarray) -> np.ndarray:
    shape = _hf_shape(path, array.shape)
    if path[-1] != "kernel":
        return array.reshape(shape)
    return np.ascontiguousarray(array.reshape(shape[::-1]).T)


def _tensor_names(path: LeafPath, shape: tuple[int, ...]) -> list[str]:
    """Returns the names that a leaf of ours has in the files, layer by layer."""
    if path[0] != "layers":
        return [_hf_name(path, None)]
    return [_hf_name(path, layer) for layer in range(shape[0])]


def _expected_shapes(template: Params) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in _leaves(template).items():
        shape = leaf.shape[1:] if path[0] == "layers" else leaf.shape
        for name in _tensor_names(path, leaf.shape):
            shapes[name] = _hf_shape(path, shape)
    return shapes


@contextlib.contextmanager
def _open_tensors(path: Path) -> Iterator[dict[str, Any]]:
    """Yields tensor name -> the open file that holds it.

    Raises:
      CheckpointError: a file is missing or damaged.
    """
    with contextlib.ExitStack() as stack:
        tensors: dict[str, Any] = {}
        for file in _weight_files(path):
            try:
                handle = safetensors.safe_open(file, framework="numpy")
                stack.enter_context(handle)
            except (safetensors.SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{file}: damaged or cut short ({error}); copy it again"
                ) from error
            tensors |= dict.fromkeys(handle.keys(), handle)
        yield tensors


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
    path: Path, tensors: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]
) -> None:
    problems = _missing_or_unexpected(expected, tensors)
    for name in sorted(set(tensors) & set(expected)):
        view = tensors[name].get_slice(name)
        shape, dtype = tuple(view.get_shape()), view.get_dtype()
        if shape != expected[name]:
            problems.append(f"  {name}: shape {shape}, expected {expected[name]}")
        elif dtype not in _DTYPES:
            problems.append(f"  {name}: type {dtype}, expected one of {list(_DTYPES)}")
    _raise_if_any(problems, f"{path}: weights do not fit {_CONFIG}")


def _check_params(cfg: ModelConfig, params: Params) -> None:
    expected = {"/".join(p): v.shape for p, v in _leaves(abstract_params(cfg)).items()}
    found = {"/".join(p): np.shape(v) for p, v in _leaves(params).items()}
    problems = _missing_or_unexpected(expected, found)
    problems += [
        f"  {name}: shape {found[name]}, expected {expected[name]}"
        for name in sorted(set(found) & set(expected))
        if found[name] != expected[name]
    ]
    _raise_if_any(problems, "parameters do not fit the model's configuration")


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


def _read_leaf(
    tensors: Mapping[str, Any], path: LeafPath, shape: tuple[int, ...]
) -> np.ndarray:
    names = _tensor_names(path, shape)
    is_stacked = path[0] == "layers"
    layer_shape = shape[1:] if is_stacked else shape
    out = np.empty((len(names), *layer_shape), np.float32)
    for layer, name in enumerate(names):
        out[layer] = _from_hf(path, tensors[name].get_tensor(name), layer_shape)
    return out if is_stacked else out[0]


def _write_weights(
    folder: Path, params: Params, dtype: Dtype, max_file_bytes: int
) -> None:
    item_bytes = jnp.dtype(dtype).itemsize
    files: list[dict[str, tuple[LeafPath, int | None]]] = [{}]
    room = max_file_bytes
    total_bytes = 0
    for name, path, layer, size in _tensor_list(params):
        num_bytes = size * item_bytes
        if num_bytes > room and files[-1]:
            files.append({})
            room = max_file_bytes
        files[-1][name] = (path, layer)
        room -= num_bytes
        total_bytes += num_bytes
    leaves = _leaves(params)
    weight_map: dict[str, str] = {}
    for number, sources in enumerate(files, start=1):
        tensors: dict[str, np.ndarray] = {}
        for name, (path, layer) in sources.items():
            leaf = leaves[path] if layer is None else leaves[path][layer]
            tensors[name] = _to_hf(path, np.asarray(leaf)).astype(jnp.dtype(dtype))
        file = _WEIGHTS
        if len(files) > 1:
            file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    if len(files) > 1:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        _write_json(folder / _INDEX, index)


def _tensor_list(
    params: Params,
) -> Iterator[tuple[str, LeafPath, int | None, int]]:
    """Yields (name, path, layer, number of elements), one layer after the other."""
    leaves = _leaves(params)
    stacked = {path: leaf for path, leaf in leaves.items() if path[0] == "layers"}
    for path, leaf in leaves.items():
        if path not in stacked:
            yield _hf_name(path, None), path, None, math.prod(leaf.shape)
    num_layers = next(iter(stacked.values())).shape[0]
    for layer in range(num_layers):
        for path, leaf in stacked.items():
            yield _hf_name(path, layer), path, layer, math.prod(leaf.shape[1:])


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Yields a folder that takes the place of `path` when the block succeeds.

    Raises:
      ConfigError: `path` holds something else than a Hugging Face folder.
    """
    is_free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    if not is_free and not (path / _CONFIG).is_file():
        raise ConfigError(
            f"{path} exists and is no Hugging Face folder; it is not overwritten"
        )
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
