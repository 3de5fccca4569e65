"""Hugging Face's config.json of a Qwen-2.5 model <-> our ModelConfig.

Reads what transformers 4 and 5 write (they renamed `rope_theta` and
`torch_dtype`) and writes the older names, which both read. A model that our code
would compute differently from transformers is refused, never approximated.
"""

from collections.abc import Mapping
from typing import Any, Literal

from mlagent_jax.config import ModelConfig
from mlagent_jax.errors import ConfigError

# Hugging Face's name -> ours; the value that transformers takes if it is absent.
_REQUIRED = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}
_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "max_position_embeddings": 32_768,
}
_DEFAULT_ROPE_THETA = 10_000.0


def config_from_json(config: Mapping[str, Any]) -> ModelConfig:
    """Returns the ModelConfig of a parsed config.json.

    Activations are computed in float32 if the weights were saved so, else in
    bfloat16; fields that the file does not know keep their defaults.

    Raises:
      ConfigError: another model family, an attention, activation or position
        encoding that is not implemented, or a missing or ill-typed field.
    """
    _refuse_unsupported(config)
    missing = [name for name in _REQUIRED if config.get(name) is None]
    if missing:
        raise ConfigError(f"config.json: missing {', '.join(missing)}")
    fields: dict[str, Any] = {
        ours: _typed(config, theirs, int) for theirs, ours in _REQUIRED.items()
    }
    num_heads, hidden_size = fields["num_heads"], fields["hidden_size"]
    head_dim = config.get("head_dim")
    if head_dim is None and (num_heads < 1 or hidden_size % num_heads != 0):
        raise ConfigError(
            f"config.json: hidden_size = {hidden_size} is not a multiple of "
            f"num_attention_heads = {num_heads}, and there is no head_dim"
        )
    num_kv_heads = config.get("num_key_value_heads")
    known = {name: value for name, value in config.items() if name in _DEFAULTS}
    values = _DEFAULTS | known
    return ModelConfig(
        **fields,
        num_kv_heads=(
            num_heads
            if num_kv_heads is None
            else _typed(config, "num_key_value_heads", int)
        ),
        head_dim=(
            hidden_size // num_heads
            if head_dim is None
            else _typed(config, "head_dim", int)
        ),
        rope_theta=_rope_theta(config),
        rms_norm_eps=float(_typed(values, "rms_norm_eps", (int, float))),
        tie_word_embeddings=_typed(values, "tie_word_embeddings", bool),
        max_position_embeddings=_typed(values, "max_position_embeddings", int),
        compute_dtype="float32" if _saved_dtype(config) == "float32" else "bfloat16",
    )


def config_to_json(
    cfg: ModelConfig,
    dtype: Literal["float32", "bfloat16"] = "float32",
    *,
    end_ids: tuple[int, ...] = (),
    pad_id: int | None = None,
) -> dict[str, Any]:
    """Returns the config.json of `cfg`, readable by transformers 4.51 to 5.

    Args:
      cfg: the model.
      dtype: of the weights in the folder.
      end_ids: tokens that end a reply; the first is the config's `eos_token_id`.
      pad_id: padding token, None for none.
    """
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.hidden_size,
        "intermediate_size": cfg.intermediate_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": cfg.max_position_embeddings,
        "rms_norm_eps": cfg.rms_norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": cfg.tie_word_embeddings,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": cfg.num_layers,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": end_ids[0] if end_ids else None,
        "pad_token_id": pad_id,
    }


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    rope = _rope(config)
    layer_types = config.get("layer_types") or []
    found: dict[str, tuple[Any, Any]] = {
        "model_type": (config.get("model_type"), "qwen2"),
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "use_sliding_window": (config.get("use_sliding_window") or False, False),
        "quantization_config": (config.get("quantization_config"), None),
        "rope_scaling type": (
            rope.get("rope_type", rope.get("type", "default")),
            "default",
        ),
        "partial_rotary_factor": (rope.get("partial_rotary_factor", 1.0), 1.0),
    }
    for field, (value, expected) in found.items():
        if value != expected:
            raise ConfigError(
                f"config.json: {field} = {value!r} is not supported, only {expected!r}"
            )
    if set(layer_types) - {"full_attention"}:
        raise ConfigError(
            f"config.json: layer_types = {sorted(set(layer_types))!r} is not "
            "supported, only 'full_attention'"
        )


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    # transformers 5 writes `rope_parameters`, 4 writes `rope_scaling`.
    for name in ("rope_parameters", "rope_scaling"):
        value = config.get(name)
        if value is not None:
            return _typed(config, name, dict)
    return {}


def _rope_theta(config: Mapping[str, Any]) -> float:
    for values in (_rope(config), config):
        if values.get("rope_theta") is not None:
            return float(_typed(values, "rope_theta", (int, float)))
    return _DEFAULT_ROPE_THETA


def _saved_dtype(config: Mapping[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")


def _typed(values: Mapping[str, Any], name: str, kind: Any) -> Any:
    value = values[name]
    is_wrong_bool = isinstance(value, bool) and kind is not bool
    if not isinstance(value, kind) or is_wrong_bool:
        expected = getattr(kind, "__name__", "number")
        raise ConfigError(f"config.json: {name} = {value!r}: expected {expected}")
    return value
