"""Packs: what was put comes back, whatever processes write and die beside it."""

import multiprocessing
import os
import random

import pytest

from mlagent_jax.env.packs import PackFolder
from mlagent_jax.errors import EnvUnavailableError


def make_key(i: int) -> bytes:
    return bytes([1]) + i.to_bytes(31, "big")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "packs"


def test_records_come_back_byte_for_byte_to_writer_and_readers(folder):
    rng = random.Random(0)
    writer, early = PackFolder(folder), PackFolder(folder)
    assert early.get(make_key(0)) is None
    saved = {}
    for i in range(200):
        saved[make_key(i)] = rng.randbytes(rng.randrange(2_000))
        writer.put(make_key(i), saved[make_key(i)])
        assert early.get(make_key(i)) == saved[make_key(i)]
    for reader in (writer, early, PackFolder(folder, fsync=True)):
        assert {key: reader.get(key) for key in saved} == saved
        assert reader.get(make_key(999)) is None
    assert len(list(folder.iterdir())) == 1


def test_the_newest_record_of_a_key_counts(folder):
    old, new = PackFolder(folder), PackFolder(folder)
    old.put(make_key(1), b"old")
    os.utime(old.where(make_key(1)), ns=(0, 0))
    new.put(make_key(1), b"new")
    assert PackFolder(folder).get(make_key(1)) == b"new"


@pytest.mark.parametrize("missing", range(1, 50))
def test_an_unfinished_record_is_passed_over_and_hides_nothing(folder, missing):
    dying = PackFolder(folder)
    dying.put(make_key(1), b"first")
    dying.put(make_key(2), b"x" * 14)  # 36 + 14 bytes
    path = dying.where(make_key(1))
    path.write_bytes(path.read_bytes()[:-missing])
    restarted = PackFolder(folder)
    assert restarted.get(make_key(2)) is None
    restarted.put(make_key(2), b"again")
    assert restarted.get(make_key(1)) == b"first"
    assert PackFolder(folder).get(make_key(2)) == b"again"


def test_a_tail_of_zeros_is_passed_over(folder):
    dying = PackFolder(folder)
    dying.put(make_key(1), b"first")
    path = dying.where(make_key(1))
    path.write_bytes(path.read_bytes() + bytes(500))
    assert PackFolder(folder).get(make_key(1)) == b"first"
    assert PackFolder(folder).get(bytes(32)) is None


def test_a_failed_write_leaves_nothing_and_the_next_one_works(folder, monkeypatch):
    packs = PackFolder(folder)
    packs.put(make_key(1), b"first")
    real = os.write

    def write_some(descriptor: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", write_some)
    with pytest.raises(EnvUnavailableError, match="No space left.*another workdir"):
        packs.put(make_key(2), b"y" * 1_000)
    monkeypatch.undo()
    assert packs.get(make_key(2)) is None
    packs.put(make_key(2), b"second")
    assert PackFolder(folder).get(make_key(1)) == b"first"
    assert PackFolder(folder).get(make_key(2)) == b"second"


def _put_many(packs: PackFolder, start: int) -> None:
    for i in range(start, start + 300):
        packs.put(make_key(i), b"%d" % i * (i % 50))


def test_forked_processes_write_packs_of_their_own(folder):
    packs = PackFolder(folder)
    packs.put(make_key(10_000), b"parent")
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_put_many, args=(packs, start)) for start in (0, 150)
    ]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        packs.get(make_key(449))  # reads on while others write
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(folder.iterdir())) == 3
    for i in range(450):
        assert packs.get(make_key(i)) == b"%d" % i * (i % 50)
    assert packs.get(make_key(10_000)) == b"parent"
