"""Trajectory files survive kills, full disks and damage, or say what is wrong."""

import json
import logging
import os
import tracemalloc

import pytest

from mlagent_jax.data import trajectories
from mlagent_jax.data.trajectories import TrajectoryFile, TrajectoryWriter
from mlagent_jax.errors import DataError, EnvUnavailableError
from tests.samples import make_edit, make_step, make_trajectory

STEP = make_step(make_edit("a\n", "b\n"), 0.5, 0.6, feedback="\u2713 \ud800 done")


def write(path, names):
    with TrajectoryWriter(path) as writer:
        for name in names:
            writer.append(make_trajectory(name, [STEP]))


def test_what_was_written_is_read_back(tmp_path):
    path = tmp_path / "new" / "x.jsonl"
    write(path, ["b", "a"])
    file = TrajectoryFile(path)
    assert len(file) == 2
    assert file.read_id("b") == make_trajectory("b", [STEP])


def test_trajectories_are_ordered_by_id_whatever_finished_first(tmp_path):
    write(tmp_path / "1.jsonl", ["c", "a", "b"])
    write(tmp_path / "2.jsonl", ["b", "c", "a"])
    first, second = (TrajectoryFile(tmp_path / f"{i}.jsonl") for i in (1, 2))
    assert first.ids() == second.ids() == ("a", "b", "c")
    assert list(first) == list(second)


def test_opening_again_appends_and_knows_the_ids(tmp_path):
    path = tmp_path / "x.jsonl"
    write(path, ["a"])
    write(path, ["b"])
    with TrajectoryWriter(path) as writer:
        assert writer.ids == {"a", "b"}
    assert len(path.read_text().splitlines()) == 2


def test_a_half_written_last_line_is_cut_off_with_a_warning(tmp_path, caplog):
    path = tmp_path / "x.jsonl"
    write(path, ["a", "b"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with caplog.at_level(logging.WARNING):
        assert TrajectoryFile(path).ids() == ("a",)
        write(path, ["b"])
    assert "ignored a half-written last line" in caplog.text
    assert "cut off a half-written last line" in caplog.text
    assert path.read_bytes() == whole


def test_a_duplicate_id_is_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    write(path, ["a"])
    with pytest.raises(DataError, match="duplicate trajectory id 'a'"):
        write(path, ["a"])
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(DataError, match=r"x.jsonl:2: duplicate .* first on line 1"):
        TrajectoryFile(path)


@pytest.mark.parametrize("damage", ["", "{}", "\x00" * 40, '{"id": "b", "task'])
def test_a_damaged_middle_line_names_file_and_line(tmp_path, damage):
    path = tmp_path / "x.jsonl"
    write(path, ["a", "b", "c"])
    lines = path.read_text().splitlines()
    lines[1] = damage
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"x.jsonl:2: damaged"):
        TrajectoryFile(path)
    with pytest.raises(DataError, match=r"x.jsonl:2: damaged"):
        TrajectoryWriter(path)


def test_damage_inside_a_line_is_found_when_it_is_read(tmp_path):
    path = tmp_path / "x.jsonl"
    write(path, ["a", "b"])
    path.write_text(path.read_text().replace('"task_version": 1', '"task_version": }'))
    file = TrajectoryFile(path)
    with pytest.raises(DataError, match=r"x.jsonl:2: damaged line"):
        file.read_id("b")


def test_a_field_of_another_version_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    write(path, ["a"])
    value = json.loads(path.read_text())
    del value["seed"]
    path.write_text(json.dumps(value) + "\n")
    with pytest.raises(DataError, match=r"x.jsonl:1: .*missing fields \['seed'\]"):
        TrajectoryFile(path).read(0)


def test_a_missing_file_says_which_stage_makes_it(tmp_path):
    with pytest.raises(DataError, match="has the collect stage run"):
        TrajectoryFile(tmp_path / "no.jsonl")


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    write(path, ["a"])
    whole = path.read_bytes()
    real_write = os.write

    def write_some(fd, data):
        if os.fstat(fd).st_size > len(whole):
            raise OSError(28, "No space left on device")
        return real_write(fd, data[:50])

    with TrajectoryWriter(path) as writer:
        monkeypatch.setattr(trajectories.os, "write", write_some)
        with pytest.raises(EnvUnavailableError, match="No space left on device"):
            writer.append(make_trajectory("b", [STEP]))
        assert path.read_bytes() == whole
        monkeypatch.undo()
        writer.append(make_trajectory("b", [STEP]))
    assert TrajectoryFile(path).ids() == ("a", "b")


def test_two_writers_of_one_file_are_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    with TrajectoryWriter(path), pytest.raises(DataError, match="another process"):
        TrajectoryWriter(path)
    TrajectoryWriter(path).close()


def test_ten_thousand_trajectories_stream_with_flat_memory(tmp_path):
    path = tmp_path / "x.jsonl"
    with TrajectoryWriter(path) as writer:
        writer.append(make_trajectory("t00000", [STEP] * 15))
    line = path.read_bytes()
    with path.open("wb") as file:
        for i in range(10_000):
            file.write(line.replace(b"t00000", b"t%05d" % i))
    tracemalloc.start()
    indexed = TrajectoryFile(path)
    assert indexed.read(9_999).id == "t09999"
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(indexed) == 10_000
    assert peak_bytes < 8 << 20
    assert path.stat().st_size > 64 << 20
