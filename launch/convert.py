"""Weights between Hugging Face folders and checkpoints, whatever their size.

    python -m launch.convert --src=runs/quickstart/ppo --dst=my_model --to=hf
    python -m launch.convert --src=Qwen2.5-7B --dst=run/pretrain --to=orbax

`--src` is a Hugging Face folder, a stage of a run directory, or what `--to=orbax`
wrote. Weights pass through memory a layer at a time and no device is used. What
`--to=hf` writes has everything that transformers needs. The folder appears complete
or not at all, and replaces an older one only with `--overwrite`. (A run can also
start from a Hugging Face folder itself: RunConfig.init.)
"""

import dataclasses
import functools
import json
import math
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import jax.numpy as jnp
import numpy as np
from absl import app, flags
from absl import logging as absl_logging

from launch import common, exits
from launch.weights import find_checkpoint, tokenizer_path
from mlagent_jax.config import ModelConfig, RunConfig
from mlagent_jax.errors import ConfigError, MlAgentError
from mlagent_jax.model import hf, hf_layout
from mlagent_jax.model.hf_config import config_to_json
from mlagent_jax.model.qwen2 import abstract_params
from mlagent_jax.model.streaming import Slot
from mlagent_jax.text.tokenizer import Tokenizer
from mlagent_jax.train.piecewise import CheckpointPieces, LeafPieces, write_checkpoint
from mlagent_jax.types import from_json

_SRC = flags.DEFINE_string("src", "", "HF folder, stage of a run, or checkpoint.")
_DST = flags.DEFINE_string("dst", "", "Folder to write.")
_TO = flags.DEFINE_enum("to", "hf", ["hf", "orbax"], "What to write.")
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16"],
    "Of the weights that are written; default: as they are.",
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an older --dst.")

_CONFIG = "config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Weights that can be read piece by piece.

    Attributes:
      config: of the model.
      dtype: of the weights.
      read: returns a piece in our layout.
      check: raises `CheckpointError` if what was read is not what was saved.
      tokenizer: folder of the tokenizer, None if there is none.
    """

    config: ModelConfig
    dtype: hf.Dtype
    read: hf_layout.ReadPiece
    check: Callable[[], None]
    tokenizer: Path | None


def open_source(src: Path) -> Source:
    """Returns the weights that `src` holds; names and shapes are checked.

    Raises:
      ConfigError: it holds none.
      CheckpointError: weights are missing, unexpected, mis-shaped or damaged.
      DataError: the run's run.json is of another version.
    """
    has_config = (src / _CONFIG).is_file()
    if has_config and not (src / "checkpoints").is_dir():
        folder = hf.HfFolder(src)
        return Source(
            config=folder.config,
            dtype=folder.dtype,
            read=folder.read,
            check=lambda: None,
            tokenizer=_tokenizer_in(src),
        )
    src = src.resolve()
    if has_config:
        config, tokenizer = hf.load_config(src), _tokenizer_in(src / "tokenizer")
        step_dir, prefix = find_checkpoint(src, "pretrain")
    else:
        run = _load_run_config(src)
        config = hf.model_of_run(run)
        step_dir, prefix = find_checkpoint(src, src.name)
        tokenizer = tokenizer_path(run, src.parent)
    checkpoint = CheckpointPieces(step_dir, prefix)
    hf.check_shapes(config, checkpoint.shapes(), str(step_dir))
    is_bfloat16 = checkpoint.dtype() == jnp.bfloat16
    return Source(
        config=config,
        dtype="bfloat16" if is_bfloat16 else "float32",
        read=lambda piece, slot: checkpoint.read(
            "/".join(piece.path), piece.index, slot
        ),
        check=checkpoint.check,
        tokenizer=tokenizer,
    )


def convert(
    src: Path,
    dst: Path,
    to: str,
    dtype: hf.Dtype | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Converts what `src` holds into `dst`; see the flags.

    Raises:
      ConfigError: a path is wrong, or `dst` is there already.
      CheckpointError: weights are missing, unexpected, mis-shaped or damaged.
    """
    source = open_source(src)
    dtype = dtype or source.dtype
    leaves = hf_layout.leaves(abstract_params(source.config)).values()
    num_bytes = sum(math.prod(leaf.shape) for leaf in leaves)
    num_bytes *= jnp.dtype(dtype).itemsize
    with common.progress(num_bytes, f"to {to}", "B", unit_scale=True) as bar:
        if to == "hf":
            _write_hf(source, dst, dtype, overwrite, bar.update)
        else:
            _write_orbax(source, dst, dtype, overwrite, bar.update)
    print(f"wrote {dst}")


def _write_hf(
    source: Source,
    dst: Path,
    dtype: hf.Dtype,
    overwrite: bool,
    on_piece: Callable[[int], object],
) -> None:
    tokenizer = None
    if source.tokenizer is not None:
        tokenizer = Tokenizer.load(source.tokenizer)
    end_ids: dict[int, None] = {}
    if tokenizer is not None:
        end_ids = dict.fromkeys((tokenizer.end_of_turn_id, tokenizer.pad_id))

    def finish(folder: Path) -> None:
        source.check()
        if tokenizer is not None:
            tokenizer.save(folder)

    hf.write_folder(
        dst,
        source.config,
        source.read,
        dtype,
        end_ids=tuple(end_ids),
        pad_id=None if tokenizer is None else tokenizer.pad_id,
        save_tokenizer=finish,
        overwrite=overwrite,
        on_piece=on_piece,
    )


def _write_orbax(
    source: Source,
    dst: Path,
    dtype: hf.Dtype,
    overwrite: bool,
    on_piece: Callable[[int], object],
) -> None:
    template = hf_layout.leaves(abstract_params(source.config))
    by_leaf: dict[hf_layout.LeafPath, list[hf_layout.Piece]] = {}
    for piece in hf_layout.pieces(abstract_params(source.config)):
        by_leaf.setdefault(piece.path, []).append(piece)

    lock = threading.Lock()

    def read(piece: hf_layout.Piece, slot: Slot) -> np.ndarray:
        array = source.read(piece, slot)
        with lock:
            on_piece(array.size * jnp.dtype(dtype).itemsize)
        return array

    leaves = {
        "/".join(("params", *path)): LeafPieces(
            shape=template[path].shape,
            dtype=jnp.dtype(dtype),
            indices=[piece.index for piece in parts],
            parts=[functools.partial(read, piece) for piece in parts],
        )
        for path, parts in by_leaf.items()
    }
    with hf.new_folder(dst, marker=_CONFIG, overwrite=overwrite) as folder:
        write_checkpoint(folder / "checkpoints", leaves, {"source": "convert"})
        source.check()
        if source.tokenizer is not None:
            shutil.copytree(
                source.tokenizer, folder / "tokenizer", ignore=_not_tokenizer
            )
        config = config_to_json(source.config, dtype, end_ids=(), pad_id=None)
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _not_tokenizer(folder: str, names: list[str]) -> list[str]:
    return [n for n in names if n == _CONFIG or "safetensors" in n]


def _tokenizer_in(folder: Path) -> Path | None:
    found = any((folder / name).is_file() for name in _TOKENIZER_FILES)
    return folder if found else None


def _load_run_config(src: Path) -> RunConfig:
    """Returns the config of the run that `src` is a stage of.

    Raises:
      ConfigError: it is none.
      DataError: run.json is of another version.
    """
    record = src.parent / "run.json"
    if not src.is_dir() or not record.is_file():
        raise ConfigError(
            f"--src={src}: expected a Hugging Face folder (config.json) or a stage "
            f"of a run ({record} is missing)"
        )
    try:
        value = json.loads(record.read_text())["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{record} is damaged ({error!r})") from error
    return from_json(RunConfig, value, str(record))


def main(argv: list[str]) -> None:
    """Reads the flags and converts; a deliberate error is one message, status 2."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    if len(argv) > 1:
        exits.fail(f"unexpected arguments {argv[1:]}")
    src, dst = _SRC.value, _DST.value
    if not (src and dst):
        exits.fail("--src and --dst are required")
    try:
        convert(
            Path(src),
            Path(dst),
            _TO.value,
            cast("hf.Dtype | None", _DTYPE.value),
            overwrite=_OVERWRITE.value,
        )
    except MlAgentError as error:
        exits.fail(str(error))
    except OSError as error:
        exits.fail(f"{error.strerror}: {error.filename}")


if __name__ == "__main__":
    app.run(main)
