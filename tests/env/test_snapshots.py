"""The content-addressed store: what goes in comes out, or an error does."""

import hashlib
import multiprocessing
import os
import random

import pytest

from mlagent_jax.env.snapshots import SnapshotStore, write_atomically
from mlagent_jax.errors import DataError, EnvUnavailableError

LARGE = 20_000  # repeats that make a blob too large for a pack


def blob_files(root):
    return [path for path in root.rglob("*") if path.is_file()]


def test_workspaces_come_back_byte_for_byte(tmp_path):
    rng = random.Random(0)
    store = SnapshotStore(tmp_path, memory_bytes=2_000)
    saved = {}
    for _ in range(30):
        files = {
            f"f{rng.randrange(9)}/é{i}.bin": rng.randbytes(rng.randrange(900))
            for i in range(rng.randrange(6))
        }
        saved[store.put(files)] = files
    for snapshot, files in saved.items():
        assert store.get(snapshot) == files
        assert SnapshotStore(tmp_path).get(snapshot) == files


def test_the_id_depends_on_content_alone(tmp_path):
    a = SnapshotStore(tmp_path / "a", fsync=True)
    b = SnapshotStore(tmp_path / "b")
    assert a.put({"x": b"1", "y": b"2"}) == b.put({"y": b"2", "x": b"1"})
    assert a.put({"x": b"1"}) != a.put({"y": b"1"})


def test_equal_files_are_stored_once(tmp_path):
    store = SnapshotStore(tmp_path)
    store.put({"a": b"same", "b": b"same"})
    store.put({"a": b"same", "b": b"other"})
    # Two contents, two manifests; each record has a head of 36 bytes.
    size = sum(path.stat().st_size for path in blob_files(tmp_path))
    manifests = [store.get_blob(store.put(f)) for f in ({"a": b"same", "b": b"same"},)]
    assert size == 4 * 36 + len(b"same") + len(b"other") + 2 * len(manifests[0])


def test_restoring_a_neighbour_reads_only_what_differs(tmp_path):
    store = SnapshotStore(tmp_path)
    base = {f"f{i}": b"%d" % i * LARGE for i in range(20)}
    first, second = store.put(base), store.put({**base, "f3": b"new" * LARGE})
    reader = SnapshotStore(tmp_path)
    reader.get(first)
    kept = reader.manifest(second)["f3"]
    for path in (tmp_path / "blobs").rglob("*"):
        if path.is_file() and path.parent.name + path.name != kept:
            path.unlink()
    assert reader.get(second)["f3"] == b"new" * LARGE


@pytest.mark.parametrize("content", [b"print(1)", b"print(1)\n" * LARGE])
def test_a_damaged_blob_is_an_error_that_names_the_file(tmp_path, content):
    snapshot = SnapshotStore(tmp_path).put({"train.py": content})
    (path,) = (p for p in blob_files(tmp_path) if content in p.read_bytes())
    path.write_bytes(path.read_bytes().replace(b"print(1)", b"print(2)", 1))
    with pytest.raises(DataError, match=f"{path.name}.*is damaged"):
        SnapshotStore(tmp_path).get(snapshot)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        SnapshotStore(tmp_path).get(snapshot)


@pytest.mark.parametrize("content", [b"content", b"content" * LARGE])
def test_the_stump_of_a_crash_is_healed_by_the_next_write(tmp_path, content):
    blob_id = SnapshotStore(tmp_path).put_blob(content)
    (path,) = blob_files(tmp_path)
    path.write_bytes(path.read_bytes()[:20])
    assert SnapshotStore(tmp_path).put_blob(content) == blob_id
    assert SnapshotStore(tmp_path).get_blob(blob_id) == content


def test_a_run_of_a_version_without_packs_is_read(tmp_path):
    content = b"small"
    blob_id = hashlib.sha256(content).hexdigest()
    write_atomically(tmp_path / "blobs" / blob_id[:2] / blob_id[2:], content)
    assert SnapshotStore(tmp_path).get_blob(blob_id) == content


@pytest.mark.parametrize("blob_id", ["", "../../etc/passwd", "a" * 63, "A" * 64])
def test_only_hashes_name_blobs(tmp_path, blob_id):
    with pytest.raises(DataError, match="not a blob id"):
        SnapshotStore(tmp_path).get_blob(blob_id)


@pytest.mark.parametrize("content", [b"print(1)", b"[1]", b'{"a": 1}', b"\xff"])
def test_a_file_is_no_snapshot(tmp_path, content):
    store = SnapshotStore(tmp_path)
    blob_id = store.put_blob(content)
    with pytest.raises(DataError, match="not a snapshot"):
        store.get(blob_id)


def test_a_folder_that_cannot_be_written_is_our_fault(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvUnavailableError, match="cannot write"):
        SnapshotStore(tmp_path / "file").put_blob(b"x")


def test_a_failed_write_leaves_neither_file_nor_stump(tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(EnvUnavailableError, match="No space left"):
        write_atomically(tmp_path / "a", b"x")
    assert blob_files(tmp_path) == []


def _write_many(root):
    store = SnapshotStore(root, memory_bytes=0)
    for i in range(60):
        store.put({"shared": b"%d" % i * LARGE, "pid": b"%d" % (i % 7)})


def test_many_processes_may_write_the_same_store(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_write_many, args=(tmp_path,)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    store = SnapshotStore(tmp_path)
    for i in range(60):
        files = {"shared": b"%d" % i * LARGE, "pid": b"%d" % (i % 7)}
        assert store.get(SnapshotStore(tmp_path / "other").put(files)) == files
