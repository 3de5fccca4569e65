import dataclasses

import pytest

from mlagent_jax.errors import ConfigError
from mlagent_jax.model.hf_config import config_from_json, config_to_json

# Qwen2.5-7B-Instruct's own file, written by transformers 4.
QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}


def changed(**fields):
    """QWEN_7B with fields changed, or removed where the value is `...`."""
    config = QWEN_7B | fields
    return {name: value for name, value in config.items() if value is not ...}


def test_qwen_7b_is_read():
    cfg = config_from_json(QWEN_7B)
    assert (cfg.num_layers, cfg.num_heads, cfg.num_kv_heads) == (28, 28, 4)
    assert cfg.head_dim == 128
    assert cfg.rope_theta == 1e6
    assert cfg.compute_dtype == "bfloat16"
    assert not cfg.tie_word_embeddings


def test_what_transformers_5_writes_is_read_alike():
    newer = changed(
        rope_theta=...,
        torch_dtype=...,
        dtype="bfloat16",
        rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"},
        layer_types=["full_attention"] * 28,
        sliding_window=None,
    )
    assert config_from_json(newer) == config_from_json(QWEN_7B)


def test_our_own_file_reads_back_equal(tiny_config):
    for cfg in (
        tiny_config,
        dataclasses.replace(tiny_config, tie_word_embeddings=True, head_dim=6),
        config_from_json(QWEN_7B),
    ):
        dtype = cfg.compute_dtype
        assert config_from_json(config_to_json(cfg, dtype)) == cfg


def test_absent_fields_take_transformers_defaults():
    cfg = config_from_json(
        changed(
            rope_theta=...,
            rms_norm_eps=...,
            num_key_value_heads=None,
            tie_word_embeddings=...,
            torch_dtype=...,
        )
    )
    assert cfg.rope_theta == 10_000.0
    assert cfg.rms_norm_eps == 1e-6
    assert cfg.num_kv_heads == 28
    assert not cfg.tie_word_embeddings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "llama"}, "model_type = 'llama' is not supported"),
        ({"model_type": ...}, "model_type = None is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'.*only 'silu'"),
        ({"use_sliding_window": True}, "use_sliding_window = True is not supported"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types = .*sliding_attention",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling .*'yarn'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling type = 'linear'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "= 'llama3'.*only 'default'"),
        ({"rope_scaling": "yarn"}, "rope_scaling = 'yarn': expected dict"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = .*'bits': 4"),
        ({"hidden_size": ..., "vocab_size": None}, "missing vocab_size, hidden_size"),
        ({"hidden_size": "3584"}, "hidden_size = '3584': expected int"),
        ({"num_attention_heads": True}, "num_attention_heads = True: expected int"),
        ({"num_attention_heads": 25}, "3584 is not a multiple .* 25"),
        ({"num_key_value_heads": 5}, r"model\.num_kv_heads = 5: expected a divisor"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps = 'tiny': expected number"),
    ],
)
def test_what_we_would_compute_wrongly_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        config_from_json(changed(**fields))


def test_default_rope_scaling_is_accepted():
    for value in (None, {"rope_type": "default"}, {"type": "default"}):
        assert config_from_json(changed(rope_scaling=value)).rope_theta == 1e6
