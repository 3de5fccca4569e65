"""Injected faults: whose fault it is decides what happens (design decision 10).

The agent's fault is feedback, ours drops the sample and is counted, a bug stops the
run. Workers that die or hang are in test_worker_pool.py.
"""

import dataclasses
import errno
import os
import subprocess
from pathlib import Path

import pytest

from mlagent_jax.config import EnvConfig
from mlagent_jax.env import packs, pool_jobs, snapshots
from mlagent_jax.env.cached_runner import differences
from mlagent_jax.env.environment import Environment
from mlagent_jax.env.execution_cache import ExecutionCache
from mlagent_jax.env.integrity import LABEL_COPY, SAMPLE_COPY, submission_events
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.worker_pool import WorkerPool
from mlagent_jax.errors import EnvUnavailableError
from mlagent_jax.text.actions import render_action
from mlagent_jax.types import Action, ActionKind, Outcome, StepRecord
from tests.env.test_worker_pool import wait_for
from tests.fakes import (
    FakeExecutor,
    make_fake_environment,
    make_graded_task,
    make_submission,
)

CFG = EnvConfig(use_cache=False)


def write(script):
    return render_action(Action(kind=ActionKind.WRITE, path="train.py", content=script))


@pytest.fixture(name="task")
def fixture_task(tmp_path):
    return make_graded_task(tmp_path / "task")


@pytest.fixture(name="full_disk")
def fixture_full_disk(tmp_path):
    """A folder on a file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_drops_the_step_and_leaves_no_half_file(task, full_disk):
    env = make_fake_environment({"toy": task}, full_disk, CFG)
    start = env.reset("toy").state
    (full_disk / "others").write_bytes(bytes(16 << 10))
    big = write("".join(f"print {i}\n" for i in range(5_400)) + "right 30\n")
    with pytest.raises(EnvUnavailableError, match="No space left"):
        env.step(start, big)
    assert not [p for p in full_disk.rglob("*") if p.name.startswith(".partial")]
    # The stump of a small record would hide what is written after it.
    for i in range(200):
        try:
            env.step(start, write(f"print {i}\n" * 100 + "right 30\n"))
        except EnvUnavailableError:
            break
    else:
        pytest.fail("the disk never filled up")
    reader = SnapshotStore(full_disk)
    assert reader.get(start.snapshot) == {"train.py": task.starter["train.py"].encode()}


@pytest.mark.parametrize("num_lines", [1, 3_000])  # in a pack, as a file
def test_a_failing_disk_is_our_fault_in_every_write(
    task, tmp_path, monkeypatch, num_lines
):
    env = make_fake_environment({"toy": task}, tmp_path / "store", CFG)
    start = env.reset("toy").state

    def fail(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(snapshots.tempfile, "NamedTemporaryFile", fail)
    monkeypatch.setattr(packs, "_append", fail)
    with pytest.raises(EnvUnavailableError, match="Input/output error"):
        env.step(start, write("print 123\n" * num_lines + "right 30\n"))


def test_a_read_that_hangs_costs_its_job_and_nothing_else(task, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_jobs, "_HANG_GRACE_S", -38.0)  # 2 * 20 - 38 = 2 s
    root = tmp_path / "store"
    cfg = EnvConfig(num_workers=1, use_cache=False)
    with WorkerPool({"toy": task}, root, cfg, make=make_fake_environment) as pool:
        pool.submit_reset("start", "toy")
        state = wait_for(pool)["start"].value.state
        lost = SnapshotStore(root).put({"train.py": b"right 10\n", "x": b"x" * 99_999})
        blob = SnapshotStore(root).manifest(lost)["x"]
        path = root / "blobs" / blob[:2] / blob[2:]
        path.unlink()
        os.mkfifo(path)  # nobody ever writes to it: opening it blocks
        hung = dataclasses.replace(state, snapshot=lost)
        pool.submit("hung", hung, write("right 30\n"))
        pool.submit("good", state, write("right 30\n"))
        results = wait_for(pool)
    assert results["hung"].value is None
    assert "hung for 2 s" in results["hung"].error
    assert isinstance(results["good"].value, StepRecord)


def test_a_grader_that_fails_stops_the_run(task, tmp_path):
    cfg = EnvConfig(num_workers=1, use_cache=False)
    with WorkerPool(
        {"toy": task}, tmp_path / "store", cfg, make=make_fake_environment
    ) as pool:
        pool.submit_reset("start", "toy")
        state = wait_for(pool)["start"].value.state
        pool.close()
    (task.private_dir / "labels.csv").write_text("nonsense\n")
    with WorkerPool(
        {"toy": task}, tmp_path / "store", cfg, make=make_fake_environment
    ) as pool:
        pool.submit("a", state, write("right 30\n"))
        with pytest.raises(Exception, match=r"bug in an environment worker|labels"):
            wait_for(pool)


# The execution cache is checked against the truth.


class Dice(FakeExecutor):
    """Prints another number each time, as a script without a seed does."""

    def run(self, task_id, files, script):
        execution = super().run(task_id, files, script)
        result = dataclasses.replace(execution.result, stdout=str(self.num_runs))
        return dataclasses.replace(execution, result=result)


def cached(task, store, executor, **changes):
    cfg = EnvConfig(**changes)
    cache = ExecutionCache(store)
    return Environment({"toy": task}, store, executor, cfg, cache)


@pytest.mark.parametrize(
    ("executor", "frac", "check", "num_runs"),
    [
        (FakeExecutor(), 0.0, "", 2),
        (FakeExecutor(), 1.0, "same", 3),
        (Dice(), 1.0, "different", 3),
    ],
)
def test_a_share_of_the_caches_answers_is_repeated(
    task, tmp_path, caplog, executor, frac, check, num_runs
):
    executor.num_runs = 0
    store = SnapshotStore(tmp_path / "store")
    env = cached(task, store, executor, verify_cache_frac=frac)
    start = env.reset("toy").state
    first = env.step(start, write("right 30\n"))
    second = env.step(start, write("right 30\n"))
    assert (first.cache_check, second.cache_check) == ("", check)
    assert executor.num_runs == num_runs
    assert second.execution.stdout == first.execution.stdout  # the cache's answer
    assert ("has another stdout" in caplog.text) == (check == "different")


def test_steps_of_a_non_deterministic_task_are_never_cached(task, tmp_path):
    executor = FakeExecutor()
    other = dataclasses.replace(task, is_deterministic=False)
    store = SnapshotStore(tmp_path / "store")
    env = cached(other, store, executor)
    start = env.reset("toy").state
    for _ in range(2):
        assert not env.step(start, write("right 30\n")).execution.is_cached
    assert executor.num_runs == 3
    assert not (store.root / "executions").exists()


def test_differences_name_what_decides_a_step(task, tmp_path):
    store = SnapshotStore(tmp_path / "store")
    env = cached(task, store, FakeExecutor())
    env.reset("toy")
    (pack,) = (store.root / "executions").iterdir()
    found = ExecutionCache(store).get(pack.read_bytes()[:32].hex())
    warned = dataclasses.replace(found.result, stderr="a warning", wall_s=9.0)
    assert differences(found, dataclasses.replace(found, result=warned)) == []
    other = dataclasses.replace(
        found, submission=None, result=dataclasses.replace(found.result, exit_code=1)
    )
    assert differences(found, other) == ["submission", "exit_code"]


# Submissions that nobody predicted.


def test_copies_of_public_files_are_noted(tmp_path):
    task = make_graded_task(tmp_path / "task")
    public: Path = task.public_dir
    labels = [i % 3 % 2 for i in range(40)]
    train = "\n".join(
        ["id,x,target", *(f"{100 + i},0,{y}" for i, y in enumerate(labels))]
    )
    (public / "train.csv").write_text(train)
    (public / "sample_submission.csv").write_text("id,target\n1,0\n0,0\n2,0\n")
    sample = b"id,target\r\n0, 0\r\n1,0\r\n2,0\r\n"
    assert submission_events(task, sample) == (SAMPLE_COPY,)
    copied = "\n".join(["target,id", *(f"{y},{i}" for i, y in enumerate(labels))])
    assert submission_events(task, copied.encode()) == (LABEL_COPY,)
    honest = "\n".join(["id,target", *(f"{i},{1 - y}" for i, y in enumerate(labels))])
    assert submission_events(task, honest.encode()) == ()
    constant = "\n".join(["id,target", *(f"{i},1" for i in range(40))])
    assert submission_events(task, constant.encode()) == ()
    for broken in [b"", b"\xff\0", b'"', b"id\n1,2,3\n"]:
        assert submission_events(task, broken) == ()


def test_a_copied_sample_is_scored_and_stamped_on_the_step(task, tmp_path):
    env = make_fake_environment({"toy": task}, tmp_path / "store", CFG)
    (task.public_dir / "sample_submission.csv").write_bytes(make_submission(20))
    start = env.reset("toy").state
    step = env.step(start, write("print x\nright 20\n"))
    assert step.outcome is Outcome.SCORED
    assert step.integrity_events == (SAMPLE_COPY,)
    assert set(step.reward_parts) == {"paper_v1", "paper_v2", "bounded"}
