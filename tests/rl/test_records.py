"""JSONL files of updates across restarts."""

import json

import pytest

from mlagent_jax.errors import DataError
from mlagent_jax.rl.records import UpdateLog


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_three_updates(path):
    with UpdateLog(path) as log:
        for update in range(3):
            log.append(update, [{"x": 0}, {"x": 1}])


def test_a_resumed_log_drops_the_updates_that_come_again(tmp_path):
    path = tmp_path / "ppo" / "log.jsonl"
    write_three_updates(path)
    with UpdateLog(path, first_update=1) as log:
        assert log.has(0)
        assert not log.has(1)
        log.append(1, [{"x": 7}])
        assert log.has(1)
    assert read(path) == [
        {"update": 0, "x": 0},
        {"update": 0, "x": 1},
        {"update": 1, "x": 7},
    ]


def test_a_half_written_last_line_is_cut(tmp_path):
    path = tmp_path / "log.jsonl"
    write_three_updates(path)
    whole = path.read_text()
    path.write_text(whole + '{"update": 3, "x')
    UpdateLog(path, first_update=9).close()
    assert path.read_text() == whole


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"update": 0}\n{"x": 1}\n{"update": 1}\n')
    with pytest.raises(DataError, match=r"log\.jsonl:2: not a record of an update"):
        UpdateLog(path, first_update=9)
