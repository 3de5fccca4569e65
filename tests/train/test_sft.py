"""Fine-tuning learns the replies, and a killed run ends as if it had not been."""

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.config import MeshConfig, OptimizerConfig, RunConfig, SftConfig
from mlagent_jax.data.examples import TokenExample
from mlagent_jax.errors import CheckpointError, ConfigError
from mlagent_jax.model import hf
from mlagent_jax.train.checkpoint import load_params
from mlagent_jax.train.metrics import read_metrics
from mlagent_jax.train.sft import train_sft
from tests.train.test_lm import no_progress

SFT = SftConfig(
    num_epochs=4.0,
    batch_size=8,
    micro_batch_size=4,
    seq_lens=(12, 20),
    optimizer=OptimizerConfig(peak_lr=1e-2),
    eval_frac=0.1,
    eval_every=4,
)


def make_examples() -> list[TokenExample]:
    """Prompts that name a token; the reply is that token and an end mark."""
    rng = np.random.default_rng(0)
    examples: list[TokenExample] = []
    for number in range(48):
        length = int(rng.integers(6, 20))
        tokens_T = rng.integers(10, 40, length).astype(np.int32)
        tokens_T[-2:] = (5, 2)
        mask_T = np.zeros(length, bool)
        mask_T[-2:] = True
        name = f"t{number // 2:02d}@{number % 2}"
        examples.append(TokenExample(name=name, tokens_T=tokens_T, loss_mask_T=mask_T))
    return examples


@pytest.fixture
def config(tiny_config) -> RunConfig:
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    return RunConfig(name="toy", model=tiny_config, mesh=mesh, sft=SFT)


def train(config: RunConfig, workdir: Path):
    return train_sft(config, workdir, make_examples(), pad_id=0, progress=no_progress)


def test_the_replies_are_learnt_and_the_best_checkpoint_is_kept(tmp_path, config):
    state = train(config, tmp_path)
    losses = [
        r["eval/loss"] for r in read_metrics(tmp_path / "sft") if "eval/loss" in r
    ]
    assert losses[-1] < 0.3 < losses[0]
    best = load_params(tmp_path / "sft" / "checkpoints", best_metric="loss")
    if losses[-1] == min(losses):
        jax.tree.map(np.testing.assert_array_equal, best, state.params)


def test_weights_of_a_hugging_face_folder_are_the_start(tmp_path, config, tiny_config):
    from mlagent_jax.model import qwen2

    params = qwen2.init_params(tiny_config, jax.random.key(7))
    hf.save_folder(tmp_path / "hf", tiny_config, params, "float32")
    frozen = dataclasses.replace(SFT, optimizer=OptimizerConfig(peak_lr=1e-12))
    config = dataclasses.replace(
        config, init=str(tmp_path / "hf"), model=None, sft=frozen
    )
    state = train(config, tmp_path)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, params
    )


def test_without_the_pretrain_stage_the_message_says_what_is_missing(tmp_path, config):
    from mlagent_jax.config import PretrainConfig

    config = dataclasses.replace(config, pretrain=PretrainConfig())
    with pytest.raises(CheckpointError, match=r"pretrain/checkpoints: no such folder"):
        train(config, tmp_path)


def test_tokens_beyond_the_models_vocabulary_are_refused(tmp_path, config, tiny_config):
    small = dataclasses.replace(tiny_config, vocab_size=32)
    config = dataclasses.replace(config, model=small)
    with pytest.raises(ConfigError, match=r"vocab_size = 32: .* have token 39"):
        train(config, tmp_path)


def test_other_examples_do_not_continue_a_run(tmp_path, config):
    train(config, tmp_path)
    with pytest.raises(ConfigError, match="examples: 48 examples.* -> 46 examples"):
        train_sft(config, tmp_path, make_examples()[2:], pad_id=0, progress=no_progress)


_PROGRAM = """
import pickle, sys
from pathlib import Path
from tests.train.test_lm import no_progress
from tests.train.test_sft import make_examples, train
config = pickle.loads(Path(sys.argv[1]).read_bytes())
print("ready", flush=True)
train(config, Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_killed_twice_the_same_command_ends_with_the_same_weights(tmp_path, config):
    mesh = MeshConfig(fsdp=1)
    sft = dataclasses.replace(SFT, num_epochs=16.0, eval_every=5)
    config = dataclasses.replace(config, mesh=mesh, sft=sft)
    (tmp_path / "config").write_bytes(pickle.dumps(config))

    def start(workdir: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", _PROGRAM]
        return subprocess.Popen(
            [*command, str(tmp_path / "config"), str(workdir)],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"XLA_FLAGS": ""},
        )

    def newest(workdir: Path) -> int:
        folder = workdir / "sft" / "checkpoints"
        steps = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
        return max(steps, default=0)

    assert start(tmp_path / "straight").wait() == 0
    for _ in range(2):
        before = newest(tmp_path / "killed")
        process = start(tmp_path / "killed")
        while newest(tmp_path / "killed") <= before + 5 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 0 < newest(tmp_path / "killed") < newest(tmp_path / "straight")
    assert start(tmp_path / "killed").wait() == 0
    ours, theirs = (
        load_params(tmp_path / name / "sft" / "checkpoints")
        for name in ("killed", "straight")
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert isinstance(jax.tree.leaves(ours)[0], jnp.ndarray)
    curves = [read_metrics(tmp_path / name / "sft") for name in ("killed", "straight")]
    assert curves[0] == curves[1]
