"""The browser's data: complete, in chunks, and unable to break out of the page."""

import base64
import gzip
import json
import re

import pytest

from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.evaluation import browser
from mlagent_jax.evaluation.browser import ChunkWriter, Entry
from tests.samples import SCRIPT, make_edit, make_step, make_task, make_trajectory

HOSTILE = '</script><script>alert(1)</script>\u2028 \U0001f600 \\" ${x}'


def unpack(text):
    return json.loads(gzip.decompress(base64.b64decode(text)))


def read_chunk(path):
    match = re.fullmatch(r'receive\((\d+),"([A-Za-z0-9+/=]*)"\)\n', path.read_text())
    assert match is not None
    assert path.name == f"{match[1]}.js"
    return unpack(match[2])


@pytest.fixture
def world(tmp_path):
    store = SnapshotStore(tmp_path / "store")
    first = store.put({"train.py": SCRIPT.encode()})
    second = store.put({"train.py": b"\xff broken"})
    return tmp_path / "chunks", store, first, second


def make_entry(number, first, second, reply=HOSTILE):
    steps = (
        make_step(make_edit("a", "b"), after=0.7, snapshots=(first, second)),
        make_step(reply, snapshots=(second, second), feedback=HOSTILE),
    )
    trajectory = make_trajectory(
        f"toy/expert/{number:04d}", steps, start_snapshot=first, ideas=("try it",)
    )
    return Entry(
        trajectory=trajectory,
        task=make_task(),
        source="evaluation",
        rewards=(1.0, 0.5),
        scores={"final": 0.7},
        gain=12.34567,
    )


def test_every_trajectory_is_found_where_the_index_says(world, monkeypatch):
    folder, store, first, second = world
    monkeypatch.setattr(browser, "_CHUNK_BYTES", 6_000)
    writer = ChunkWriter(folder, store)
    for number in range(9):
        writer.add(make_entry(number, first, second))
    index = unpack(writer.finish({"run": "r"}))
    rows = [dict(zip(index["columns"], row, strict=True)) for row in index["rows"]]
    chunks = {int(p.stem): read_chunk(p) for p in folder.iterdir()}
    assert len(chunks) > 1
    for number, row in enumerate(rows):
        detail = chunks[row["chunk"]][row["position"]]
        assert detail["id"] == row["id"] == f"toy/expert/{number:04d}"
    assert sum(map(len, chunks.values())) == 9
    assert (rows[0]["reward"], rows[0]["gain"], rows[0]["steps"]) == (0.75, 12.346, 2)
    assert [index["outcomes"][o] for o in rows[0]["outcomes"]] == ["info", "scored"]


def test_a_step_shows_state_reply_feedback_reward_and_scores(world):
    folder, store, first, second = world
    writer = ChunkWriter(folder, store)
    writer.add(make_entry(0, first, second))
    writer.finish({})
    (detail,) = read_chunk(folder / "0.js")
    edit, talk = detail["steps"]
    assert detail["scripts"][edit["state"]] == SCRIPT
    assert detail["scripts"][talk["state"]] == "\ufffd broken"
    assert (edit["label"], edit["before"], edit["after"]) == ("edit train.py", 0.5, 0.7)
    assert (talk["label"], talk["reply"], talk["feedback"]) == (
        "no action",
        HOSTILE,
        HOSTILE,
    )
    assert (edit["reward"], talk["reward"]) == (1.0, 0.5)


def test_hostile_text_is_nowhere_in_the_files_as_text(world):
    folder, store, first, second = world
    writer = ChunkWriter(folder, store)
    writer.add(make_entry(0, first, second))
    packed = writer.finish({"x": HOSTILE})
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", packed)
    assert "<" not in (folder / "0.js").read_text()


def test_the_same_records_make_the_same_bytes_and_old_chunks_go(world):
    folder, store, first, second = world
    packed = []
    for count in (3, 1, 1):
        (folder / "7.js").parent.mkdir(exist_ok=True)
        (folder / "7.js").write_text("old")
        writer = ChunkWriter(folder, store)
        for number in range(count):
            writer.add(make_entry(number, first, second))
        packed.append((writer.finish({}), (folder / "0.js").read_bytes()))
    assert packed[1] == packed[2] != packed[0]
    assert [p.name for p in folder.iterdir()] == ["0.js"]
