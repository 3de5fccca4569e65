"""Weights of a run -> Hugging Face folder, or a folder -> checkpoint.

    python -m launch.convert --src=runs/quickstart/ppo --dst=my_model --to=hf
    python -m launch.convert --src=Qwen2.5-0.5B --dst=run/pretrain --to=checkpoint

`--src` is a stage of a run directory or a Hugging Face folder. The folder that
`--to=hf` writes has everything that transformers needs; it appears complete or not
at all. (A run can also start from a folder itself: RunConfig.init.)
"""

import json
from pathlib import Path
from typing import cast

from absl import app, flags

from launch import common
from launch.weights import load_stage_weights, tokenizer_path
from mlagent_jax.config import ModelConfig, RunConfig
from mlagent_jax.errors import ConfigError, MlAgentError
from mlagent_jax.model import hf
from mlagent_jax.model.qwen2 import Params
from mlagent_jax.text.tokenizer import Tokenizer
from mlagent_jax.train.checkpoint import Checkpoints
from mlagent_jax.types import from_json

_SRC = flags.DEFINE_string("src", "", "Stage folder of a run, or HF folder.")
_DST = flags.DEFINE_string("dst", "", "Folder to write.")
_TO = flags.DEFINE_enum("to", "hf", ["hf", "checkpoint"], "What to write.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Of the weights that --to=hf writes."
)


def load_source(src: Path) -> tuple[ModelConfig, Params, Path]:
    """Returns model, parameters and tokenizer path of a stage or HF folder.

    Raises:
      ConfigError: `src` is neither.
      CheckpointError: its weights are missing or damaged.
      DataError: the run's run.json is of another version.
    """
    if (src / "config.json").is_file():
        return *hf.load_folder(src), src
    src = src.resolve()
    workdir, record = src.parent, src.parent / "run.json"
    if not src.is_dir() or not record.is_file():
        raise ConfigError(
            f"--src={src}: expected a Hugging Face folder (config.json) or a stage "
            f"of a run ({record} is missing)"
        )
    try:
        value = json.loads(record.read_text())["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{record} is damaged ({error!r})") from error
    config = from_json(RunConfig, value, str(record))
    return (
        *load_stage_weights(config, workdir, src.name),
        tokenizer_path(config, workdir),
    )


def export_hf(
    cfg: ModelConfig,
    params: Params,
    tokenizer_dir: Path,
    dst: Path,
    dtype: hf.Dtype = "float32",
) -> None:
    """Writes a complete Hugging Face folder: configuration, weights, tokenizer.

    Args:
      cfg: the model.
      params: its weights.
      tokenizer_dir: what `Tokenizer.load` reads.
      dst: the folder; an older export there is replaced.
      dtype: of the weights in the files.
    """
    tokenizer = Tokenizer.load(tokenizer_dir)
    end_ids = dict.fromkeys((tokenizer.end_of_turn_id, tokenizer.pad_id))
    hf.save_folder(
        dst,
        cfg,
        params,
        dtype,
        end_ids=tuple(end_ids),
        pad_id=tokenizer.pad_id,
        save_tokenizer=tokenizer.save,
    )


def convert(src: Path, dst: Path, to: str, dtype: hf.Dtype) -> None:
    """Converts what `src` holds into `dst`; see the flags.

    Raises:
      ConfigError: a path is wrong.
      CheckpointError: weights are missing or damaged.
    """
    cfg, params, tokenizer_dir = load_source(src)
    if to == "hf":
        export_hf(cfg, params, tokenizer_dir, dst, dtype)
    else:
        checkpoints = Checkpoints(dst / "checkpoints", keep=1)
        checkpoints.save(0, {"params": params}, meta={"source": str(src)})
        checkpoints.close()
    print(f"wrote {dst}")


def main(argv: list[str]) -> None:
    """Reads the flags and converts; a deliberate error is one message, status 2."""
    if len(argv) > 1:
        common.fail(f"unexpected arguments {argv[1:]}")
    src, dst, dtype = _SRC.value, _DST.value, cast(hf.Dtype, _DTYPE.value)
    if not (src and dst):
        common.fail("--src and --dst are required")
    try:
        convert(Path(src), Path(dst), _TO.value, dtype)
    except MlAgentError as error:
        common.fail(str(error))
    except OSError as error:
        common.fail(f"{error.strerror}: {error.filename}")


if __name__ == "__main__":
    app.run(main)
