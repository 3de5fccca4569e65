import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlagent_jax.config import MeshConfig, ModelConfig, RunConfig
from mlagent_jax.errors import CheckpointError, ConfigError
from mlagent_jax.model import hf, qwen2
from mlagent_jax.parallel.mesh import make_mesh
from mlagent_jax.parallel.sharding import tree_shardings


def assert_trees_equal(found, expected) -> None:
    for leaf, expected_leaf in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(leaf, expected_leaf, strict=True)
    assert jax.tree.structure(found) == jax.tree.structure(expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config, tiny_params):
    path = tmp_path_factory.mktemp("hf") / "model"
    hf.save_folder(path, tiny_config, tiny_params)
    return path


@pytest.fixture
def copied(folder, tmp_path):
    """The folder, free to be damaged."""
    return shutil.copytree(folder, tmp_path / "model")


@pytest.mark.parametrize("is_tied", [False, True])
def test_what_is_saved_loads_again_bit_for_bit(
    tmp_path, tiny_config, tiny_params, is_tied
):
    cfg = dataclasses.replace(tiny_config, tie_word_embeddings=is_tied)
    params = {k: v for k, v in tiny_params.items() if k != "lm_head" or not is_tied}
    hf.save_folder(tmp_path / "model", cfg, params)
    loaded_cfg, loaded = hf.load_folder(tmp_path / "model")
    assert loaded_cfg == cfg
    assert_trees_equal(loaded, params)


def test_bfloat16_files_load_exactly_and_save_again_alike(
    tmp_path, tiny_config, tiny_params
):
    first, second = tmp_path / "first", tmp_path / "second"
    hf.save_folder(first, tiny_config, tiny_params, "bfloat16")
    cfg, params = hf.load_folder(first)
    assert cfg.compute_dtype == "bfloat16"
    rounded = jax.tree.map(lambda p: p.astype(jnp.bfloat16), tiny_params)
    assert_trees_equal(params, jax.tree.map(lambda p: p.astype(jnp.float32), rounded))
    hf.save_folder(second, cfg, params, "bfloat16")
    files = [(path / "model.safetensors").read_bytes() for path in (first, second)]
    assert files[0] == files[1]


def test_large_weights_are_split_and_indexed(tmp_path, tiny_config, tiny_params):
    path = tmp_path / "model"
    hf.save_folder(path, tiny_config, tiny_params, max_file_bytes=20_000)
    files = sorted(path.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((path / "model.safetensors.index.json").read_text())
    stored = {name: file.name for file in files for name in load_file(file)}
    assert index["weight_map"] == stored
    num_bytes = sum(4 * leaf.size for leaf in jax.tree.leaves(tiny_params))
    assert index["metadata"]["total_size"] == num_bytes
    assert_trees_equal(hf.load_folder(path)[1], tiny_params)
    files[1].unlink()
    with pytest.raises(CheckpointError, match=f"missing files {files[1].name}"):
        hf.load_folder(path)


def test_weights_load_onto_a_mesh(folder, tiny_config, tiny_params):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    _, params = hf.load_folder(folder, mesh)
    shardings = tree_shardings(mesh, tiny_params)
    found = jax.tree.map(lambda p: p.sharding, params)
    assert found == shardings
    assert_trees_equal(params, tiny_params)


def test_an_export_replaces_an_older_one_with_its_tokenizer(
    copied, tiny_config, tiny_params
):
    (copied / "stale.txt").touch()
    hf.save_folder(
        copied,
        tiny_config,
        tiny_params,
        end_ids=(2, 0),
        pad_id=0,
        save_tokenizer=lambda path: (path / "tokenizer.json").touch(),
    )
    assert sorted(path.name for path in copied.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    generation = json.loads((copied / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 0]
    assert [path.name for path in copied.parent.iterdir()] == ["model"]


def test_a_failed_export_leaves_the_older_one(copied, tiny_config, tiny_params):
    def fail(path) -> None:
        raise OSError(f"no space left on device: {path}")

    with pytest.raises(OSError, match="no space left"):
        hf.save_folder(copied, tiny_config, tiny_params, save_tokenizer=fail)
    assert_trees_equal(hf.load_folder(copied)[1], tiny_params)
    assert [path.name for path in copied.parent.iterdir()] == ["model"]


def test_a_folder_of_something_else_is_not_overwritten(
    tmp_path, tiny_config, tiny_params
):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="not what would be written"):
        hf.save_folder(tmp_path, tiny_config, tiny_params)
    assert (tmp_path / "thesis.txt").exists()


def test_a_run_may_say_how_the_model_of_a_folder_is_computed(folder, tiny_config):
    run = RunConfig(name="x", init=str(folder))
    assert hf.model_of_run(run) == tiny_config
    cfg = dataclasses.replace(tiny_config, remat="layer", compute_dtype="bfloat16")
    assert hf.model_of_run(dataclasses.replace(run, model=cfg)) == cfg


def test_a_run_whose_model_is_not_the_folders_is_refused(folder, tiny_config):
    cfg = dataclasses.replace(tiny_config, hidden_size=64, rms_norm_eps=1e-5)
    run = RunConfig(name="x", init=str(folder), model=cfg)
    with pytest.raises(ConfigError, match="hidden_size = 64, there 32") as caught:
        hf.model_of_run(run)
    assert "rms_norm_eps = 1e-05, there 1e-06" in str(caught.value)


def test_all_missing_unexpected_and_misshaped_tensors_are_listed(copied):
    file = copied / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    del tensors["model.layers.1.self_attn.q_proj.bias"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((3, 5), np.float32)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.int8)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="5 differences") as error:
        hf.load_folder(copied)
    assert str(error.value).splitlines()[1:] == [
        "  model.layers.1.self_attn.q_proj.bias: missing",
        "  model.norm.weight: missing",
        "  model.layers.0.self_attn.rotary_emb.inv_freq: unexpected",
        "  lm_head.weight: type I8, expected one of ['F32', 'F16', 'BF16']",
        "  model.layers.0.mlp.up_proj.weight: shape (3, 5), expected (48, 32)",
    ]


@pytest.mark.parametrize("num_bytes", [0, 5, 300, -1])
def test_a_truncated_file_is_a_checkpoint_error(copied, num_bytes):
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:num_bytes])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged or cut"):
        hf.load_folder(copied)


def test_missing_and_damaged_files_are_named(copied):
    (copied / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"missing files model\.safetensors"):
        hf.load_folder(copied)
    (copied / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"index\.json: damaged"):
        hf.load_folder(copied)
    (copied / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json: not valid JSON"):
        hf.load_folder(copied)
    (copied / "config.json").unlink()
    with pytest.raises(ConfigError, match="expected a Hugging Face folder"):
        hf.load_folder(copied)


def test_parameters_of_another_model_are_not_saved(tmp_path, tiny_config, tiny_params):
    other = dataclasses.replace(
        tiny_config, intermediate_size=40, tie_word_embeddings=True
    )
    with pytest.raises(CheckpointError, match="4 differences") as error:
        hf.save_folder(tmp_path / "model", other, tiny_params)
    assert "lm_head/kernel: unexpected" in str(error.value)
    assert "layers/mlp/down_proj/kernel: shape (2, 48, 32)" in str(error.value)
    assert not (tmp_path / "model").exists()


def test_shapes_are_hugging_faces(folder, tiny_config):
    shapes = {k: v.shape for k, v in load_file(folder / "model.safetensors").items()}
    prefix = "model.layers.1.self_attn."
    assert shapes[prefix + "q_proj.weight"] == (32, 32)
    assert shapes[prefix + "k_proj.weight"] == (16, 32)
    assert shapes[prefix + "k_proj.bias"] == (16,)
    assert shapes[prefix + "o_proj.weight"] == (32, 32)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (32, 48)
    assert shapes["lm_head.weight"] == shapes["model.embed_tokens.weight"] == (64, 32)


def test_abstract_parameters_need_no_memory():
    cfg = ModelConfig(
        vocab_size=152_064,
        hidden_size=3_584,
        intermediate_size=18_944,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
    )
    leaves = jax.tree.leaves(qwen2.abstract_params(cfg))
    assert sum(leaf.size for leaf in leaves) == 7_615_616_512  # as on its model card
