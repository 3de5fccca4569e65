"""The program that compiles ahead of time: tiny runs for real, refusals, arithmetic."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.aot import resident_together, too_few_chips

ROOT = Path(__file__).parents[2]
CONFIG = """
from mlagent_jax.config import MeshConfig, ModelConfig, RunConfig, SftConfig

def get_config():
    model = ModelConfig(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_layers=3,
        num_heads=4, num_kv_heads=2, head_dim=128, remat="layer",
    )
    sft = SftConfig(batch_size=8, micro_batch_size=4, seq_lens=(256,))
    return RunConfig(name="tiny", model=model, sft=sft, mesh=MeshConfig(tensor=2))
"""


def run_aot(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    config = tmp_path / "tiny.py"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "launch.aot", f"--config={config}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler is not installed: pip install -e .[tpu]",
)
def test_a_tiny_update_compiles_for_four_chips_and_its_numbers_add_up(tmp_path):
    path = tmp_path / "report.json"
    result = run_aot(tmp_path, "--topology=v5e:2x2", "--program=sft", f"--json={path}")
    assert result.returncode == 0, result.stderr[-2_000:]
    report = json.loads(path.read_text())
    sft = report["programs"]["sft"]
    assert report["fits"]
    assert sft["mesh"] == {"data": 1, "fsdp": 2, "tensor": 2}
    assert sft["unknown_kernels"] == []
    assert sft["open_loops"] == []
    # By hand: 8 rows of 256 tokens; a layer has (2 * (4 + 2) * 128 + 3 * 512) * 256
    # weights; attention needs the half of 256 keys below the diagonal.
    tokens = 8 * 256
    layer = 2 * (2 * 6 * 128 + 3 * 512) * 256 + 2 * 4 * 128 * 256
    forward = tokens * (3 * layer + 2 * 256 * 512)
    assert sft["model_flops"] == 3 * forward
    # A chip computes a quarter, layers once more in the backward pass, and whole
    # blocks of the attention kernel.
    assert 1.2 < sft["device_flops"] / (3 * forward / 4) < 1.7
    # float32 parameters: all but norms and key/value biases are split four ways.
    num_params = 3 * (layer / 2 - 4 * 128 * 256) + 2 * 512 * 256
    assert sft["hbm"]["parameters"] == pytest.approx(4 * num_params / 4, rel=0.02)
    assert sft["hbm"]["optimizer"] == pytest.approx(2 * 4 * num_params / 4, rel=0.02)
    bound = sft["roofline"]
    assert bound["compute_s"] == pytest.approx(sft["device_flops"] / 197e12)
    assert bound["hbm_s"] == pytest.approx(sft["hbm_traffic_bytes"] / 819e9)
    assert bound["interconnect_s"] == pytest.approx(
        sum(row["seconds"] for row in sft["collectives"])
    )


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="the GPU compiler is not installed: pip install -e .[gpu]",
)
def test_a_tiny_update_compiles_for_gpus_that_are_not_there(tmp_path):
    path = tmp_path / "report.json"
    result = run_aot(tmp_path, "--topology=h100:4", "--program=sft", f"--json={path}")
    assert result.returncode == 0, result.stderr[-2_000:]
    sft = json.loads(path.read_text())["programs"]["sft"]
    assert sft["settings"]["attention"] == "cudnn"
    assert sft["unknown_kernels"] == []
    assert sft["open_loops"] == []
    # By hand, as above: a GPU computes a quarter, layers once more but for their last
    # product, and attention's half below the diagonal, with five products back; with
    # a mask, which costs more and counts, its forward pass runs a third time.
    tokens = 8 * 256
    layer = 2 * (2 * 6 * 128 + 3 * 512) * 256
    attention = 2 * 4 * 128 * 256
    head = 2 * 256 * 512
    layers = 3 * (4 * layer - 2 * 512 * 256 + 5.5 * attention)
    assert sft["device_flops"] == tokens * (layers + 4 * head) / 4
    assert sft["hbm"]["capacity"] == pytest.approx(0.75 * 85e9, rel=0.01)
    assert sft["roofline"]["hbm_s"] == pytest.approx(sft["hbm_traffic_bytes"] / 3_350e9)
    assert sft["roofline"]["interconnect_s"] > 0


def test_a_mesh_that_does_not_divide_is_refused_without_a_compiler(tmp_path):
    result = run_aot(
        tmp_path,
        "--topology=v5p:2x2x2",
        "--program=sft",
        "--set=mesh.tensor=8",
        "--set=sft.micro_batch_size=8",
        "--set=mesh.fsdp=1",
    )
    assert result.returncode == 2
    assert "mesh.tensor = 8: does not divide model.num_heads = 4" in result.stderr
    assert "fitting: [1, 2, 4]" in result.stderr


def report(name, **hbm):
    return SimpleNamespace(name=name, hbm=hbm | {"temporaries": 0.0, "capacity": 100.0})


def test_a_model_that_no_batch_makes_fit_needs_more_chips():
    reports = [
        report("score", actor=60.0, total=150.0),
        report("ppo", actor=60.0, optimizer=120.0, total=250.0),
        report("prefill", parameters=30.0, total=40.0),
    ]
    assert "at least 8 chips" in too_few_chips(reports, 4)
    assert "actor, optimizer alone take" in too_few_chips(reports, 4)
    assert too_few_chips(reports[:1], 4) == ""


def test_the_sampler_makes_room_for_an_update_unless_it_runs_ahead():
    reports = [
        report("score", actor=3.0, reference=4.0, total=15.0),
        report("ppo", actor=3.0, optimizer=6.0, total=29.0),
        report("prefill", parameters=2.0, kv_cache=5.0, total=10.0),
        report("decode", parameters=2.0, kv_cache=5.0, total=8.0),
    ]
    alone = resident_together(reports, is_ahead=False)
    assert alone == {
        "actor": 3.0,
        "reference": 4.0,
        "optimizer": 6.0,
        "while_sampling": 10.0,
        "while_learning": 20.0,
        "total": 33.0,
        "capacity": 100.0,
    }
    assert resident_together(reports, is_ahead=True)["total"] == 43.0


@pytest.mark.parametrize(("num_prefixes", "at_most"), [(0, 0), (2, 512)])
def test_more_shared_tokens_than_a_prompt_has_are_refused(
    tmp_path, num_prefixes, at_most
):
    result = run_aot(
        tmp_path,
        "--topology=v5p:2x2x1",
        "--program=sample",
        "--shared_tokens=100000",
        f"--set=sample.num_prefixes={num_prefixes}",
        "--set=sample.prompt_buckets=(512,)",
    )
    assert result.returncode == 2
    assert f"--shared_tokens=100000: expected at most {at_most}" in result.stderr


def test_an_unknown_topology_is_refused(tmp_path):
    result = run_aot(tmp_path, "--topology=v9:2x2")
    assert result.returncode == 2
    assert "unknown chip 'v9'; expected one of v4, v5e, v5p, v6e" in result.stderr
