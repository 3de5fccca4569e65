import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from launch.convert import convert, load_source
from mlagent_jax.config import RunConfig
from mlagent_jax.errors import CheckpointError, ConfigError
from mlagent_jax.model import hf
from mlagent_jax.text.tokenizer import Tokenizer
from mlagent_jax.train.checkpoint import Checkpoints, load_params
from mlagent_jax.types import to_json

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, tiny_config, tiny_params):
    """A run directory whose PPO stage has finished."""
    path = tmp_path_factory.mktemp("run")
    config = RunConfig(name="tiny", model=tiny_config)
    (path / "run.json").write_text(json.dumps({"config": to_json(config)}))
    Tokenizer.train(["import numpy as np"], vocab_size=300).save(path / "tokenizer")
    checkpoints = Checkpoints(path / "ppo" / "checkpoints", keep=1)
    tree = {"actor": {"params": tiny_params}, "critic": {"params": {}}}
    checkpoints.save(3, tree, meta={})
    checkpoints.close()
    return path


def assert_trees_equal(found, expected) -> None:
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))


def test_a_stage_becomes_a_complete_hugging_face_folder(
    workdir, tmp_path, tiny_config, tiny_params
):
    dst = tmp_path / "export"
    convert(workdir / "ppo", dst, "hf", "float32")
    cfg, params = hf.load_folder(dst)
    assert cfg == tiny_config
    assert_trees_equal(params, tiny_params)
    tokenizer = Tokenizer.load(dst)
    generation = json.loads((dst / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [tokenizer.end_of_turn_id, tokenizer.pad_id]
    assert generation["pad_token_id"] == tokenizer.pad_id


def test_a_folder_becomes_a_checkpoint_and_comes_back(workdir, tmp_path, tiny_params):
    convert(workdir / "ppo", tmp_path / "first", "hf", "float32")
    convert(tmp_path / "first", tmp_path / "pretrain", "checkpoint", "float32")
    assert_trees_equal(load_params(tmp_path / "pretrain" / "checkpoints"), tiny_params)


def test_sources_that_hold_no_weights_are_refused(workdir, tmp_path):
    with pytest.raises(ConfigError, match=r"expected a Hugging Face folder .* stage"):
        load_source(tmp_path / "nowhere")
    (workdir / "tasks").mkdir()
    with pytest.raises(ConfigError, match="no stage 'tasks' with weights"):
        load_source(workdir / "tasks")
    (workdir / "sft").mkdir()
    with pytest.raises(CheckpointError, match="has the stage run"):
        load_source(workdir / "sft")


def test_the_program_ends_with_one_message(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "launch.convert", f"--src={tmp_path}", "--dst=x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: --src={tmp_path}: expected a Hugging")
