"""The program that measures the run's programs where they can run: on this CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = """
from mlagent_jax.config import (
    MeshConfig, ModelConfig, PpoConfig, RunConfig, SampleConfig, SftConfig
)

def get_config():
    model = ModelConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_layers=1,
        num_heads=4, num_kv_heads=2, head_dim=16,
    )
    return RunConfig(
        name="tiny",
        model=model,
        sft=SftConfig(batch_size=4, micro_batch_size=2, seq_lens=(64,)),
        ppo=PpoConfig(
            states_per_update=4, minibatch_size=2, micro_batch_size=2, seq_lens=(32,),
        ),
        sample=SampleConfig(
            num_slots=4, prompt_buckets=(64,), max_reply_tokens=32, prefill_chunk=32,
            steps_per_call=8,
        ),
        mesh=MeshConfig(fsdp=2),
    )
"""


def run_measure(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    config = tmp_path / "tiny.py"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "launch.measure", f"--config={config}"]
    command += [f"--workdir={tmp_path / 'run'}", "--calls=2", *arguments]
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def measured(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "run" / "measured.json").read_text())


def test_an_update_is_measured_and_its_numbers_add_up(tmp_path):
    trace_dir = tmp_path / "trace"
    result = run_measure(tmp_path, "--program=sft", f"--trace_dir={trace_dir}")
    assert result.returncode == 0, result.stderr[-3_000:]
    sft = measured(tmp_path)["sft"]
    # By hand: a layer has (2 * (4 + 2) * 16 + 3 * 128) * 64 weights and 4 heads of 16;
    # a token sees half of the 64 before it.
    layer = 2 * (2 * 6 * 16 + 3 * 128) * 64 + 2 * 4 * 16 * 64
    update = 3 * 4 * 64 * (layer + 2 * 64 * 256)
    assert len(sft["seconds"]) == 2
    median = sum(sft["seconds"]) / 2
    assert sft["devices"] == "2 x cpu"
    assert sft["mesh"] == {"data": 1, "fsdp": 2, "tensor": 1}
    assert sft["tokens"] == 4 * 64
    assert sft["tokens_per_s"] == pytest.approx(256 / median)
    assert sft["flops_per_s"] == pytest.approx(update / 2 / median)
    assert sft["mfu"] is None  # of a device whose peak is not known
    assert sft["hbm_frac"] is None
    assert "tokens/s" in result.stdout
    assert list((trace_dir / "sft").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_every_program_of_a_run_is_measured(tmp_path):
    result = run_measure(tmp_path)
    assert result.returncode == 0, result.stderr[-3_000:]
    # By hand: tokens of a call, over all rows.
    tokens = {name: entry["tokens"] for name, entry in measured(tmp_path).items()}
    assert tokens == {
        "sft": 4 * 64,
        "score": 4 * 32,
        "ppo": 2 * 32,
        "prefill": 4 * 64,
        "decode": 4 * 8,
    }


def test_another_call_adds_to_what_was_measured(tmp_path):
    without_critic = (
        "--set=ppo.estimator=grpo",
        "--set=ppo.samples_per_state=2",
        "--set=ppo.kl_coef=0",
    )
    result = run_measure(tmp_path, "--program=score", *without_critic)
    assert result.returncode == 0, result.stderr[-3_000:]
    shared = ("--set=sample.num_prefixes=2", "--set=sample.prefix_readers=2")
    result = run_measure(tmp_path, "--program=sample", *shared)
    assert result.returncode == 0, result.stderr[-3_000:]
    programs = measured(tmp_path)
    assert list(programs) == ["score", "prefill", "decode"]
    assert programs["decode"]["settings"]["shared_tokens"] == 64


def test_a_damaged_record_is_not_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "measured.json"
    path.write_text("{")
    result = run_measure(tmp_path, "--program=sample")
    assert result.returncode == 2
    assert "measured.json is damaged" in result.stderr
    assert path.read_text() == "{"
