"""The whole pipeline as a user runs it: programs, run directory, kill -9."""

import base64
import gzip
import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.e2e.conftest import ROOT, environment, pipeline_command, run_pipeline

STAGES = [
    "prepare",
    "collect",
    "pretrain",
    "sft",
    "ppo",
    "evaluate",
    "convert",
    "report",
]


def exported(workdir: Path) -> dict[str, np.ndarray]:
    return load_file(workdir / "export" / "model.safetensors")


def test_every_stage_runs_and_the_summary_holds_what_it_promises(finished):
    workdir, output = finished
    summary = json.loads((workdir / "report" / "summary.json").read_text())
    assert list(json.loads((workdir / "stages.json").read_text())) == STAGES
    assert set(summary) >= {
        "elapsed_s",
        "stages",
        "isolation",
        "policies",
        "ppo_minus_sft_step_reward",
        "tasks",
    }
    for name in ("starter", "expert", "sft", "ppo"):
        for split in ("held_in", "held_out"):
            assert set(summary["policies"][name][split]) >= {
                "mean_relative_gain_percent",
                "ci95",
                "valid_action_rate",
                "mean_step_reward",
            }
    assert summary["policies"]["starter"]["held_in"]["mean_relative_gain_percent"] == 0
    assert set(summary["ppo_minus_sft_step_reward"]) >= {"mean", "ci95"}
    for policies in summary["tasks"].values():
        assert set(policies["ppo"]) >= {
            "avg",
            "best",
            "metric",
            "direction",
            "baseline",
        }
    assert "Mean relative gain" in output
    assert str(workdir / "report" / "index.html") in output


def test_the_report_opens_without_a_network(finished):
    workdir, _ = finished
    index = (workdir / "report" / "index.html").read_text()
    assert "http://" not in index
    assert "https://" not in index
    packed = re.search(r'id="index">([^<]+)<', index)
    assert packed is not None
    rows = json.loads(gzip.decompress(base64.b64decode(packed[1])))["rows"]
    evaluated = [row for row in rows if row[4] == "evaluation"]
    assert len(evaluated) == 3 * 2 * 4  # tasks x trajectories x policies
    assert {f"{row[11]}.js" for row in rows} == {
        path.name for path in (workdir / "report" / "trajectories").iterdir()
    }


def test_no_hidden_label_and_no_test_score_reaches_a_record_of_training(finished):
    workdir, _ = finished
    text = (workdir / "trajectories" / "expert.jsonl").read_text()
    assert "private" not in text
    assert str(workdir) not in text


def test_the_same_command_again_does_nothing_and_says_so(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    before = exported(workdir)
    output = run_pipeline(workdir)
    assert output.count("done before") == len(STAGES)
    assert all(np.array_equal(before[k], v) for k, v in exported(workdir).items())


@pytest.mark.torch
def test_the_export_continues_in_transformers(finished):
    torch = pytest.importorskip("torch", reason="torch 2.13.0 has no build here")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    workdir, _ = finished
    model = AutoModelForCausalLM.from_pretrained(workdir / "export")
    tokenizer = AutoTokenizer.from_pretrained(workdir / "export")
    chat = [{"role": "user", "content": "Task: x."}]
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert out.shape[1] > ids.shape[1]


def test_a_typo_in_set_stops_before_any_work(tmp_path):
    workdir = tmp_path / "run"
    result = subprocess.run(
        [*pipeline_command(workdir), "--set", "ppo.num_update=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "did you mean 'num_updates'?" in result.stderr
    assert "Traceback" not in result.stderr
    assert not workdir.exists()


@pytest.mark.slow
def test_the_whole_method_runs_with_the_papers_actions_and_editor(tmp_path):
    run_pipeline(tmp_path, "--set", "env.profile=mlab")
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert summary["policies"]["expert"]["held_in"]["valid_action_rate"] == 1
    assert (tmp_path / "ppo" / "rollouts.jsonl").is_file()


@pytest.mark.slow
def test_killed_in_every_stage_the_same_command_ends_with_the_same_weights(
    finished, tmp_path
):
    straight, _ = finished
    workdir = tmp_path / "run"
    for stage in STAGES[:-1]:
        process = subprocess.Popen(
            pipeline_command(workdir),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().endswith(f"] {stage}"):
                break
        # Long enough to be inside the stage, short enough not to be past it.
        time.sleep(4.0 if stage in ("pretrain", "sft", "ppo", "evaluate") else 1.0)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run_pipeline(workdir)
    ours, theirs = exported(workdir), exported(straight)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[k], theirs[k]) for k in ours)
