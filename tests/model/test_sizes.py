"""The table of published sizes, checked against the published numbers of parameters."""

import math
from pathlib import Path

import jax
import pytest

from mlagent_jax.config import load_config, qwen2_5
from mlagent_jax.errors import ConfigError
from mlagent_jax.model import qwen2
from mlagent_jax.model.hf_config import config_from_json, config_to_json

BILLIONS = {
    "0.5B": 0.494,
    "1.5B": 1.54,
    "3B": 3.09,
    "7B": 7.62,
    "14B": 14.8,
    "32B": 32.8,
    "72B": 72.7,
}


@pytest.mark.parametrize("size", BILLIONS)
def test_a_size_has_the_published_number_of_parameters(size):
    leaves = jax.tree.leaves(qwen2.abstract_params(qwen2_5(size)))
    num_params = sum(math.prod(leaf.shape) for leaf in leaves)
    assert num_params / 1e9 == pytest.approx(BILLIONS[size], rel=0.004)


@pytest.mark.parametrize("size", BILLIONS)
def test_a_size_survives_hugging_faces_config_json(size):
    cfg = qwen2_5(size)
    assert config_from_json(config_to_json(cfg, "bfloat16")) == cfg


def test_fields_can_be_changed_and_an_unknown_size_lists_the_known():
    assert qwen2_5("7B", remat="layer").remat == "layer"
    with pytest.raises(ConfigError, match="size = '8B': expected one of 0.5B, 1.5B"):
        qwen2_5("8B")  # pyright: ignore[reportArgumentType]


def test_the_recipe_fine_tunes_with_the_papers_settings():
    root = Path(__file__).parents[2]
    sft = load_config(str(root / "configs" / "qwen2_5_7b_sft.py")).sft
    assert (sft.num_epochs, sft.batch_size) == (2.0, 64)
    assert sft.seq_lens[-1] >= 15_000
    optimizer = sft.optimizer
    assert (optimizer.peak_lr, optimizer.end_lr_frac) == (2e-5, 0.0)
    assert (optimizer.warmup_frac, optimizer.weight_decay) == (0.0, 0.0)
