import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from launch.convert import convert, open_source
from mlagent_jax.config import RunConfig
from mlagent_jax.errors import CheckpointError, ConfigError
from mlagent_jax.model import hf, hf_layout, qwen2
from mlagent_jax.text.tokenizer import Tokenizer
from mlagent_jax.train.checkpoint import Checkpoints, load_params
from mlagent_jax.types import to_json
from tests.benchmarks import convert_sizes

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
    convert(tmp_path / "first", tmp_path / "pretrain", "orbax", "float32")
    assert_trees_equal(load_params(tmp_path / "pretrain" / "checkpoints"), tiny_params)


def test_sources_that_hold_no_weights_are_refused(workdir, tmp_path):
    with pytest.raises(ConfigError, match=r"expected a Hugging Face folder .* stage"):
        open_source(tmp_path / "nowhere")
    (workdir / "tasks").mkdir()
    with pytest.raises(ConfigError, match="no stage 'tasks' with weights"):
        open_source(workdir / "tasks")
    (workdir / "sft").mkdir()
    with pytest.raises(CheckpointError, match="has the stage run"):
        open_source(workdir / "sft")


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


def read_all(folder: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a folder as bits, read by the safetensors library."""
    tensors: dict[str, np.ndarray] = {}
    for file in folder.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            tensors[name] = tensor.view(f"u{tensor.dtype.itemsize}")
    return tensors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_both_directions_are_bit_exact(
    tmp_path, monkeypatch, tiny_config, dtype, is_tied
):
    monkeypatch.setattr(hf_layout, "_VOCAB_ROWS", 24)  # does not divide 64
    cfg = dataclasses.replace(tiny_config, tie_word_embeddings=is_tied)
    params = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(0), x.shape),
        qwen2.abstract_params(cfg),
    )
    hf.save_folder(tmp_path / "a", cfg, params, dtype, max_file_bytes=8_000)
    assert (tmp_path / "a" / "model.safetensors.index.json").is_file()
    convert(tmp_path / "a", tmp_path / "b", "orbax")
    convert(tmp_path / "b", tmp_path / "c", "hf")
    before, after = read_all(tmp_path / "a"), read_all(tmp_path / "c")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[k], after[k]) for k in before)
    assert hf.load_config(tmp_path / "c") == hf.load_config(tmp_path / "a")
    # The trainer reads the same numbers, in float32.
    ours = load_params(
        tmp_path / "b" / "checkpoints", template=qwen2.abstract_params(cfg)
    )
    assert_trees_equal(ours, hf.load_folder(tmp_path / "a")[1])


def test_a_checkpoint_of_another_model_is_refused_with_all_differences(
    tmp_path, workdir
):
    other = tmp_path / "run"
    shutil.copytree(workdir, other)
    record = json.loads((other / "run.json").read_text())
    record["config"]["model"] |= {"num_kv_heads": 4, "tie_word_embeddings": True}
    (other / "run.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="5 differences") as error:
        convert(other / "ppo", tmp_path / "x", "hf")
    assert "lm_head/kernel: unexpected" in str(error.value)
    assert "k_proj/kernel: shape (2, 32, 2, 8), expected (2, 32, 4, 8)" in str(
        error.value
    )
    assert not (tmp_path / "x").exists()


def test_nothing_is_overwritten_unless_that_is_asked_for(workdir, tmp_path):
    for to in ("hf", "orbax"):
        dst = tmp_path / to
        convert(workdir / "ppo", dst, to)
        with pytest.raises(ConfigError, match="exists; remove it, or allow"):
            convert(workdir / "ppo", dst, to)
        convert(workdir / "ppo", dst, to, overwrite=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "n.txt").touch()
    with pytest.raises(ConfigError, match="not what would be written"):
        convert(workdir / "ppo", tmp_path / "notes", "hf", overwrite=True)


@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_damage_found_on_the_way_leaves_no_folder(tmp_path, workdir, to):
    convert(workdir / "ppo", tmp_path / "good", "orbax")
    chunk = next((tmp_path / "good").rglob("up_proj/kernel/1.0.0"))
    content = bytearray(chunk.read_bytes())
    content[5] ^= 0x10
    chunk.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"wrong checksums of .*up_proj"):
        convert(tmp_path / "good", tmp_path / "x", to)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good"]


def test_memory_stays_at_a_few_pieces(tmp_path, tiny_config):
    """The small version of tests/benchmarks/bench_convert.py."""
    cfg = dataclasses.replace(
        tiny_config, vocab_size=8, hidden_size=1024, intermediate_size=2048
    )
    cfg = dataclasses.replace(cfg, num_layers=24)
    convert_sizes.write_random_folder(tmp_path / "hf", cfg)
    sizes = {}
    for src, to in (("hf", "orbax"), ("orbax", "hf2")):
        sizes[to] = convert_sizes.run_convert(
            tmp_path / src, tmp_path / to, to.rstrip("2")
        ).peak_bytes
    model_bytes = convert_sizes.folder_bytes(tmp_path / "hf")
    idle_bytes = convert_sizes.run_idle().peak_bytes
    for peak_bytes in sizes.values():
        assert peak_bytes - idle_bytes < model_bytes / 2
    assert convert_sizes.same_tensors(tmp_path / "hf", tmp_path / "hf2")
