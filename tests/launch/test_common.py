"""The command line of a stage: clear errors, one process a run directory."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch import run_record
from mlagent_jax.config import load_config
from mlagent_jax.errors import ConfigError

ROOT = Path(__file__).parents[2]
CONFIG = "tests/e2e/tiny_config.py"


def run_prepare(*flags):
    return subprocess.run(
        [sys.executable, "-m", "launch.prepare", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_missing_config_flag_lists_the_configs():
    result = run_prepare()
    assert result.returncode == 2
    assert "--config is required" in result.stderr
    assert "configs/quickstart.py" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_second_seed_in_the_same_directory_is_refused(tmp_path):
    flags = (f"--config={CONFIG}", f"--workdir={tmp_path}")
    assert run_prepare(*flags).returncode == 0
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"]["seed"] == 0
    assert record["versions"]["jax"]
    result = run_prepare(*flags, "--set", "seed=1")
    assert result.returncode == 2
    assert "seed: 0 -> 1" in result.stderr
    assert json.loads((tmp_path / "run.json").read_text()) == record


def test_a_directory_in_use_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_record, "_LOCK_TRIES", 1)
    path = tmp_path / ".stage.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with (
            pytest.raises(ConfigError, match="in use by another process"),
            run_record.locked(path),
        ):
            pass


def test_a_damaged_run_record_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("{")
    config = load_config(str(ROOT / CONFIG))
    with pytest.raises(ConfigError, match="is damaged"):
        run_record.check_identity(config, tmp_path / "run.json")
