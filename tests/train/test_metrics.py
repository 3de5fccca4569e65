"""Curves of a resumed run have no gap, no repetition and no line of the lost part."""

import json
import math

import numpy as np
import pytest

from mlagent_jax.errors import DataError
from mlagent_jax.train.metrics import MetricsWriter, read_metrics


def write(directory, steps, resume_step=0):
    with MetricsWriter(directory, resume_step) as writer:
        for step in steps:
            writer.write(step, {"loss": np.float32(step / 2)})


def test_what_is_written_is_read(tmp_path):
    write(tmp_path, [1, 2])
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 1.0},
    ]
    assert list(tmp_path.glob("events.*"))


def test_a_resumed_run_drops_what_came_after_the_restored_step(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    write(tmp_path, [3, 4, 5], resume_step=2)
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_half_written_last_line_is_dropped(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-5])
    assert [r["step"] for r in read_metrics(tmp_path)] == [1]
    write(tmp_path, [2], resume_step=1)
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2]


def test_a_damaged_line_is_named(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(DataError, match=r"metrics\.jsonl:1: not a metrics record"):
        read_metrics(tmp_path)


def test_the_file_stays_valid_json_whatever_the_numbers(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": math.nan, "norm": math.inf})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "loss": None, "norm": None}
    assert math.isnan(read_metrics(tmp_path)[0]["loss"])


def test_a_stage_that_has_not_started_has_no_metrics(tmp_path):
    assert read_metrics(tmp_path) == []
