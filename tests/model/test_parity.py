"""Our model against transformers' Qwen2ForCausalLM on random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.model import cache as cache_lib
from mlagent_jax.model import cache_writes, decoder, hf, qwen2

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# vocabulary, D, F, L, N, K, H, tied, rope theta
SHAPES = {
    "one_query_head_per_kv_head": (80, 32, 48, 2, 4, 4, 8, False, 1e4),
    "two_query_heads_per_kv_head": (80, 32, 48, 2, 4, 2, 8, False, 1e4),
    "seven_query_heads_per_kv_head": (96, 56, 64, 2, 7, 1, 8, True, 1e6),
    "qwen_0.5b_heads": (101, 112, 96, 2, 14, 2, 8, True, 1e6),
    "odd_head_count": (67, 30, 44, 3, 3, 3, 10, False, 1e6),
    "five_of_fifteen": (129, 60, 72, 1, 15, 3, 4, True, 1e5),
    "head_width_of_its_own": (90, 32, 48, 2, 6, 3, 16, False, 1e6),
    "wide_and_shallow": (768, 128, 384, 2, 4, 2, 32, True, 1e4),
}


def make_reference(vocab, D, F, L, N, K, H, is_tied, theta):
    config = transformers.Qwen2Config(
        vocab_size=vocab,
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=L,
        num_attention_heads=N,
        num_key_value_heads=K,
        head_dim=H,
        tie_word_embeddings=is_tied,
        rope_parameters={"rope_theta": theta, "rope_type": "default"},
        rope_theta=theta,
    )
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(config).eval().to(torch.float32)
    # Larger than the default initialisation, and biases and scales that matter.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = "norm" in name
            std = 0.3 if parameter.ndim == 1 else 1.0 / parameter.shape[-1] ** 0.5
            parameter.normal_(1.0 if is_scale else 0.0, std)
    return model


@pytest.fixture(scope="module", params=list(SHAPES))
def pair(request, tmp_path_factory):
    """transformers' model, its folder, and what we loaded from it."""
    reference = make_reference(*SHAPES[request.param])
    path = tmp_path_factory.mktemp(request.param)
    reference.save_pretrained(path)
    cfg, params = hf.load_folder(path)
    return reference, path, cfg, params


def test_logits_equal_transformers(pair):
    reference, _, cfg, params = pair
    tokens_BT = np.random.default_rng(0).integers(0, cfg.vocab_size, (2, 33))
    with torch.no_grad():
        expected_BTV = reference(torch.from_numpy(tokens_BT)).logits.numpy()
    graphdef = qwen2.make_graphdef(cfg)

    @jax.jit
    def logits(params, tokens_BT):
        positions_BT = jnp.broadcast_to(jnp.arange(33), (2, 33))
        hidden_BTD = qwen2.forward(graphdef, params, tokens_BT, positions_BT)
        return qwen2.unembed(graphdef, params, hidden_BTD)

    found_BTV = np.asarray(logits(params, jnp.asarray(tokens_BT)))
    assert np.abs(expected_BTV).max() > 1.0
    error = float(np.abs(found_BTV - expected_BTV).max())
    print(f"max abs difference {error:.2e}")
    assert error <= 1e-4


def test_weights_survive_the_round_trip_bit_for_bit(pair, tmp_path):
    reference, _, cfg, params = pair
    hf.save_folder(tmp_path / "ours", cfg, params)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32
    )
    expected, found = reference.state_dict(), again.state_dict()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_exported_folder_continues_with_the_same_64_tokens(tmp_path):
    reference = make_reference(*SHAPES["seven_query_heads_per_kv_head"])
    reference.save_pretrained(tmp_path / "theirs")
    cfg, params = hf.load_folder(tmp_path / "theirs")
    hf.save_folder(tmp_path / "ours", cfg, params)
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    prompt_BT = np.random.default_rng(1).integers(0, cfg.vocab_size, (2, 9))
    expected_BT = exported.generate(
        torch.from_numpy(prompt_BT),
        attention_mask=torch.ones(2, 9, dtype=torch.long),
        max_new_tokens=64,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    ).numpy()

    weights = decoder.fuse_weights(cfg, params)
    cache = cache_lib.init_cache(cfg, 2, 80, chunk_size=8)
    # All but the last token of the prompts is prefilled, in one chunk a row.
    for row, prompt_T in enumerate(prompt_BT):
        cache = decoder.prefill_chunk(
            cfg,
            weights,
            cache,
            jnp.asarray(prompt_T[:8]),
            row=jnp.int32(row),
            start=jnp.int32(0),
        )
    cache = dataclasses.replace(cache, lengths_B=jnp.array([8, 8]))
    is_live_B = jnp.array([True, True])

    @jax.jit
    def step(tokens_B, cache, recent):
        hidden_BD, recent = decoder.decode_tokens(
            cfg, weights, cache, recent, tokens_B, is_live_B
        )
        return jnp.argmax(decoder.unembed(weights, hidden_BD), axis=-1), recent

    tokens = [prompt_BT[:, 8]]
    for _ in range(4):
        recent = cache_lib.init_recent(cfg, cache, 16)
        for _ in range(16):
            next_B, recent = step(jnp.asarray(tokens[-1]), cache, recent)
            tokens.append(np.asarray(next_B))
        cache = cache_writes.keep_recent(cache, recent, jnp.array([16, 16]))
    reply_BT = np.stack(tokens[1:], axis=1)
    np.testing.assert_array_equal(reply_BT, expected_BT[:, 9:])
