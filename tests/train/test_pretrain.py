"""Practice is copying and nothing else; the tokenizer is made once and whole."""

import dataclasses

import numpy as np
import pytest

from mlagent_jax.config import (
    MeshConfig,
    OptimizerConfig,
    PretrainConfig,
    RunConfig,
    TokenizerConfig,
)
from mlagent_jax.data.examples import TrainingChat
from mlagent_jax.errors import ConfigError
from mlagent_jax.text.tokenizer import Tokenizer
from mlagent_jax.train import pretrain
from mlagent_jax.train.pretrain import (
    practice_batch,
    practice_row,
    prepare_tokenizer,
    run_pretrain,
)
from mlagent_jax.types import Message
from tests.train.test_lm import no_progress

PRACTICE = PretrainConfig(
    num_updates=6,
    batch_size=8,
    seq_len=24,
    optimizer=OptimizerConfig(peak_lr=1e-2),
)


@pytest.fixture
def config(tiny_config) -> RunConfig:
    return RunConfig(
        name="toy",
        model=dataclasses.replace(tiny_config, vocab_size=320),
        mesh=MeshConfig(data=2, fsdp=2, tensor=2),
        tokenizer=TokenizerConfig(vocab_size=300),
        pretrain=PRACTICE,
    )


@pytest.fixture(autouse=True)
def _chats(monkeypatch):
    def expert_chats(config, workdir):
        messages = (Message(role="user", content="improve the script"),)
        yield TrainingChat(name="t@0", messages=messages, targets=())

    monkeypatch.setattr(pretrain, "expert_chats", expert_chats)


@pytest.mark.parametrize("seed", range(20))
def test_a_marked_token_stands_behind_the_same_token_as_before(seed):
    tokens_T, mask_T = practice_row(np.random.default_rng(seed), 64, 500)
    assert mask_T.sum() > 0
    for t in np.flatnonzero(mask_T):
        earlier = np.flatnonzero(tokens_T[: t - 1] == tokens_T[t - 1])
        assert tokens_T[t] in tokens_T[earlier + 1]


def test_practice_follows_from_seed_and_index_alone():
    def make(index, seed):
        return practice_batch(index, cfg=PRACTICE, seed=seed, vocab_size=300)

    again, other, seeded = make(3, 0), make(4, 0), make(3, 1)
    np.testing.assert_array_equal(make(3, 0).tokens_BT, again.tokens_BT)
    assert not np.array_equal(again.tokens_BT, other.tokens_BT)
    assert not np.array_equal(again.tokens_BT, seeded.tokens_BT)
    assert again.tokens_BT.max() < 300


def test_the_stage_runs_and_returns_its_copy_accuracy(tmp_path, config):
    accuracy = run_pretrain(config, tmp_path, progress=no_progress)
    assert 0.0 <= accuracy <= 1.0
    assert run_pretrain(config, tmp_path, progress=no_progress) == accuracy


def test_a_model_with_too_few_embeddings_is_refused_before_training(tmp_path, config):
    assert config.model is not None
    model = dataclasses.replace(config.model, vocab_size=256)
    config = dataclasses.replace(config, model=model)
    with pytest.raises(ConfigError, match=r"model\.vocab_size = 256: expected at leas"):
        run_pretrain(config, tmp_path, progress=no_progress)
    assert not (tmp_path / "pretrain").exists()


def test_a_run_without_the_stage_is_refused(tmp_path, config):
    config = dataclasses.replace(config, pretrain=None)
    with pytest.raises(ConfigError, match="needs both `pretrain` and `model`"):
        run_pretrain(config, tmp_path, progress=no_progress)


def test_a_tokenizer_is_trained_once_and_then_read(tmp_path, config, monkeypatch):
    (tmp_path / "tokenizer.partial").mkdir()  # an earlier process was killed
    first = prepare_tokenizer(config, tmp_path)
    monkeypatch.setattr(
        pretrain, "expert_chats", lambda *_: pytest.fail("trained again")
    )
    second = prepare_tokenizer(config, tmp_path)
    text = "improve the script"
    assert first.encode(text) == second.encode(text)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer"]


def test_a_named_tokenizer_is_used_as_it_is(tmp_path, config):
    Tokenizer.train(["zzz zzz"], 280).save(tmp_path / "given")
    tokenizer = TokenizerConfig(path=str(tmp_path / "given"))
    config = dataclasses.replace(config, tokenizer=tokenizer)
    assert prepare_tokenizer(config, tmp_path).encode("zzz") == Tokenizer.load(
        tmp_path / "given"
    ).encode("zzz")
    assert not (tmp_path / "tokenizer").exists()
