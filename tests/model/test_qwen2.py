import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.config import ModelConfig
from mlagent_jax.model import qwen2


def random_tokens(seed: int, shape: tuple[int, int], vocab_size: int) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), shape, 0, vocab_size)


def arange_rows(num_rows: int, num_tokens: int) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(num_tokens), (num_rows, num_tokens))


@pytest.fixture(scope="module")
def forward(tiny_config):
    graphdef = qwen2.make_graphdef(tiny_config)

    @jax.jit
    def run(params, tokens_BT, positions_BT, segment_ids_BT=None):
        return qwen2.forward(
            graphdef,
            params,
            tokens_BT,
            positions_BT,
            segment_ids_BT=segment_ids_BT,
        )

    return run


def test_parameters_have_hugging_face_names(tiny_params):
    paths = {
        jax.tree_util.keystr(keys, simple=True, separator="/")
        for keys, _ in jax.tree_util.tree_flatten_with_path(tiny_params)[0]
    }
    assert paths == {
        "embed_tokens/embedding",
        "layers/input_layernorm/scale",
        "layers/mlp/down_proj/kernel",
        "layers/mlp/gate_proj/kernel",
        "layers/mlp/up_proj/kernel",
        "layers/post_attention_layernorm/scale",
        "layers/self_attn/k_proj/bias",
        "layers/self_attn/k_proj/kernel",
        "layers/self_attn/o_proj/kernel",
        "layers/self_attn/q_proj/bias",
        "layers/self_attn/q_proj/kernel",
        "layers/self_attn/v_proj/bias",
        "layers/self_attn/v_proj/kernel",
        "lm_head/kernel",
        "norm/scale",
    }


def test_layers_start_different_and_the_key_decides(tiny_config, tiny_params):
    kernel_LDF = tiny_params["layers"]["mlp"]["up_proj"]["kernel"]
    assert not np.array_equal(kernel_LDF[0], kernel_LDF[1])
    init = jax.jit(qwen2.init_params, static_argnums=0)
    again = init(tiny_config, jax.random.key(0))
    assert jax.tree.all(jax.tree.map(np.array_equal, again, tiny_params))
    other = init(tiny_config, jax.random.key(1))
    other_LDF = other["layers"]["mlp"]["up_proj"]["kernel"]
    assert not np.array_equal(other_LDF, kernel_LDF)


def test_a_tied_model_has_no_output_layer(tiny_config):
    tied = dataclasses.replace(tiny_config, tie_word_embeddings=True)
    assert "lm_head" not in qwen2.abstract_params(tied)


def test_graphdef_is_static_and_equal_for_equal_configs(tiny_config, tiny_params):
    first, second = (qwen2.make_graphdef(tiny_config) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert qwen2.config_of(first, tiny_params) == tiny_config


def test_no_token_sees_a_later_one(forward, tiny_config, tiny_params):
    tokens_BT = random_tokens(1, (2, 12), tiny_config.vocab_size)
    changed_BT = tokens_BT.at[:, 7].add(1)
    positions_BT = arange_rows(2, 12)
    before = forward(tiny_params, tokens_BT, positions_BT)
    after = forward(tiny_params, changed_BT, positions_BT)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.all(np.abs(before[:, 7:] - after[:, 7:]).max(-1) > 0)


def test_two_packed_sequences_equal_two_separate_ones(
    forward, tiny_config, tiny_params
):
    tokens_BT = random_tokens(2, (2, 9), tiny_config.vocab_size)
    separate_BTD = forward(tiny_params, tokens_BT, arange_rows(2, 9))
    packed_BTD = forward(
        tiny_params,
        tokens_BT.reshape(1, 18),
        arange_rows(2, 9).reshape(1, 18),
        jnp.repeat(jnp.array([[1, 2]]), 9, axis=1),
    )
    np.testing.assert_allclose(
        packed_BTD.reshape(separate_BTD.shape), separate_BTD, atol=1e-5
    )


def test_padding_changes_nothing_and_stays_finite(forward, tiny_config, tiny_params):
    tokens_BT = random_tokens(3, (2, 6), tiny_config.vocab_size)
    alone_BTD = forward(tiny_params, tokens_BT, arange_rows(2, 6))
    # Padding on both sides: positions count real tokens only.
    padded_BT = jnp.pad(tokens_BT, ((0, 0), (3, 5)), constant_values=1)
    positions_BT = jnp.pad(arange_rows(2, 6), ((0, 0), (3, 5)))
    segment_ids_BT = jnp.pad(jnp.ones((2, 6), jnp.int32), ((0, 0), (3, 5)))
    padded_BTD = forward(tiny_params, padded_BT, positions_BT, segment_ids_BT)
    np.testing.assert_allclose(padded_BTD[:, 3:9], alone_BTD, atol=1e-5)
    assert np.all(np.isfinite(padded_BTD))


@pytest.fixture(scope="module")
def squared_logits_grads(tiny_params):
    """Gradients of the mean square of the logits of a batch with padding."""

    def loss(params, cfg: ModelConfig):
        graphdef = qwen2.make_graphdef(cfg)
        positions_BT = arange_rows(2, 10)
        hidden_BTD = qwen2.forward(
            graphdef,
            params,
            random_tokens(4, (2, 10), cfg.vocab_size),
            positions_BT,
            segment_ids_BT=(positions_BT < 7).astype(jnp.int32),
        )
        logits_BTV = qwen2.unembed(graphdef, params, hidden_BTD)
        return jnp.mean(jnp.square(logits_BTV[:, :7]))

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    return lambda cfg: grad(tiny_params, cfg)


def test_gradients_are_finite_despite_padding(tiny_config, squared_logits_grads):
    for leaf in jax.tree.leaves(squared_logits_grads(tiny_config)):
        assert np.all(np.isfinite(leaf))
        assert np.any(leaf != 0)


@pytest.mark.parametrize(
    "change",
    [
        {"remat": "layer"},
        {"remat": "attention"},
        {"remat": "offload"},
        {"attention": "xla"},
    ],
    ids=lambda change: next(iter(change.values())),
)
def test_neither_remat_nor_the_attention_changes_gradients(
    tiny_config, squared_logits_grads, change
):
    expected = squared_logits_grads(tiny_config)
    found = squared_logits_grads(dataclasses.replace(tiny_config, **change))
    for leaf, expected_leaf in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(leaf, expected_leaf, atol=1e-5)


def test_bfloat16_compute_is_near_float32(tiny_config, tiny_params):
    tokens_BT = random_tokens(7, (2, 16), tiny_config.vocab_size)
    logits = {}
    for dtype in ("float32", "bfloat16"):
        graphdef = qwen2.make_graphdef(
            dataclasses.replace(tiny_config, compute_dtype=dtype)
        )
        hidden_BTD = qwen2.forward(graphdef, tiny_params, tokens_BT, arange_rows(2, 16))
        assert hidden_BTD.dtype == dtype
        logits[dtype] = qwen2.unembed(graphdef, tiny_params, hidden_BTD)
        assert logits[dtype].dtype == jnp.float32
    error = np.abs(logits["bfloat16"] - logits["float32"]).max()
    assert error < 0.03 * np.abs(logits["float32"]).max()
