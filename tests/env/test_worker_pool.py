"""Workers: order, deaths, faults, and that nobody outlives the parent."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from mlagent_jax.config import EnvConfig
from mlagent_jax.env import pool_jobs, worker_pool
from mlagent_jax.env.environment import Start
from mlagent_jax.env.pool_jobs import JobResult
from mlagent_jax.env.worker_pool import WorkerPool
from mlagent_jax.errors import DataError, EnvUnavailableError, TaskError
from mlagent_jax.text.actions import render_action
from mlagent_jax.types import Action, ActionKind, Limits, Outcome, StepRecord
from tests.fakes import (
    make_broken_environment,
    make_fake_environment,
    make_graded_task,
)

ROOT = Path(__file__).parent.parent.parent


def write(script):
    action = Action(kind=ActionKind.WRITE, path="train.py", content=script)
    return render_action(action)


def wait_for(pool: WorkerPool, timeout_s: float = 60.0) -> dict[str, JobResult]:
    results = {}
    deadline = time.monotonic() + timeout_s
    while pool.num_pending() and time.monotonic() < deadline:
        for result in pool.poll(1.0):
            results[result.job_id] = result
    assert pool.num_pending() == 0
    return results


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture(name="task", scope="module")
def fixture_task(tmp_path_factory):
    return make_graded_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(name="root", scope="module")
def fixture_root(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(name="pool", scope="module")
def fixture_pool(task, root):
    cfg = EnvConfig(num_workers=2, use_cache=False)
    with WorkerPool({"toy": task}, root, cfg, make=make_fake_environment) as pool:
        yield pool


@pytest.fixture(name="state", scope="module")
def fixture_state(pool):
    pool.submit_reset("start", "toy")
    return wait_for(pool)["start"].value.state


def test_every_job_is_answered_once_by_its_id(pool, state):
    for i in range(0, 40, 4):
        pool.submit(f"job{i}", state, write(f"right {i}\n"))
    pool.submit_reset("reset", "toy")
    assert pool.num_pending() == 11
    results = wait_for(pool)
    assert isinstance(results.pop("reset").value, Start)
    for i in range(0, 40, 4):
        result = results[f"job{i}"]
        assert isinstance(result.value, StepRecord)
        assert result.value.score_after == i / 40
        assert result.error == ""
        assert result.seconds >= 0


def test_jobs_are_served_in_the_order_of_their_submission(task, root, state):
    cfg = EnvConfig(num_workers=1, use_cache=False)
    with WorkerPool({"toy": task}, root, cfg, make=make_fake_environment) as pool:
        names = [f"{7 * i % 10}" for i in range(10)]
        for name in names:
            pool.submit(name, state, "<list/>")
        order = []
        while pool.num_pending():
            order += [result.job_id for result in pool.poll(5.0)]
        assert order == names


def test_a_poll_returns_at_once_when_nothing_is_pending(pool):
    start_s = time.perf_counter()
    assert pool.poll(30.0) == []
    assert time.perf_counter() - start_s < 0.5


def test_an_id_may_not_be_pending_twice(pool, state):
    pool.submit("twin", state, "<list/>")
    with pytest.raises(ValueError, match="pending already"):
        pool.submit("twin", state, "<list/>")
    wait_for(pool)
    pool.submit("twin", state, "<list/>")
    wait_for(pool)


def test_workers_do_not_import_jax_nor_the_main_program(pool):
    for pid in pool.worker_pids():
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "pandas" in maps  # the grader's: so imports do show up here
        assert "jaxlib" not in maps


def test_a_killed_worker_is_replaced_and_its_job_done(pool, state):
    pids = pool.worker_pids()
    for i in range(4):
        pool.submit(f"slow{i}", state, write("sleep 1\nright 30\n"))
    pool.poll(0.3)
    os.kill(pids[0], signal.SIGKILL)
    results = wait_for(pool)
    assert [r.error for r in results.values()] == [""] * 4
    assert len(set(pool.worker_pids()) & set(pids)) == 1


def test_an_idle_worker_may_be_killed_too(pool, state):
    os.kill(pool.worker_pids()[1], signal.SIGKILL)
    pool.submit("next", state, "<list/>")
    assert wait_for(pool)["next"].error == ""


def test_a_job_that_kills_twice_is_reported_and_the_others_go_on(pool, state, caplog):
    pool.submit("killer", state, write("die\n"))
    pool.submit("good", state, write("right 30\n"))
    results = wait_for(pool)
    assert results["killer"].value is None
    assert "died (exit status -9), 2 times" in results["killer"].error
    assert results["good"].value.outcome is Outcome.SCORED
    assert "attempt 1" in caplog.text


def test_a_job_that_kills_once_succeeds(pool, state, tmp_path):
    pool.submit("once", state, write(f"die_once {tmp_path / 'mark'}\nright 30\n"))
    assert wait_for(pool)["once"].value.outcome is Outcome.SCORED


def test_our_own_fault_is_an_error_result(pool, state):
    pool.submit("full", state, write("unavailable\n"))
    result = wait_for(pool)["full"]
    assert (result.value, result.error) == (None, "the disk is full")


def test_ctrl_c_is_left_to_the_parent(pool, state):
    for pid in pool.worker_pids():
        os.kill(pid, signal.SIGINT)
    pool.submit("after", state, "<list/>")
    assert wait_for(pool)["after"].error == ""


def test_a_hung_worker_is_replaced(pool, state, monkeypatch):
    monkeypatch.setattr(pool_jobs, "_HANG_GRACE_S", -39.0)  # 2 * 20 - 39 = 1 s
    pool.submit("hung", state, write("sleep 100\n"))
    result = wait_for(pool)["hung"]
    assert "hung for 1 s" in result.error


def test_a_bug_is_raised_here_with_the_workers_traceback(pool, state):
    pool.submit("bug", state, write("bug\n"))
    with pytest.raises(RuntimeError, match="bug in an env") as caught:
        wait_for(pool)
    assert "fakes.py" in str(caught.value)
    assert "ZeroDivisionError: a fault in the grader" in str(caught.value)
    pool.submit("next", state, "<list/>")
    assert list(wait_for(pool)) == ["next"]


def test_a_users_fault_is_raised_here_as_itself(pool, state):
    pool.submit("lost", dataclasses.replace(state, snapshot="0" * 64), "<list/>")
    with pytest.raises(DataError, match="cannot be read"):
        wait_for(pool)
    pool.submit_reset("unknown", "nope")
    with pytest.raises(TaskError, match="no task 'nope'"):
        wait_for(pool)


def test_an_environment_that_cannot_be_made_is_raised_here(task, root):
    cfg = EnvConfig(num_workers=1)
    with WorkerPool({"toy": task}, root, cfg, make=make_broken_environment) as pool:
        pool.submit_reset("a", "toy")
        with pytest.raises(RuntimeError, match="no environment today"):
            wait_for(pool)


def test_workers_that_only_die_stop_the_run(task, root, monkeypatch):
    monkeypatch.setattr(worker_pool, "_command", lambda _: [sys.executable, "-c", ""])
    cfg = EnvConfig(num_workers=1)
    with WorkerPool({"toy": task}, root, cfg, make=make_fake_environment) as pool:
        pool.submit_reset("a", "toy")
        with pytest.raises(EnvUnavailableError, match="6 environment workers in a row"):
            wait_for(pool)


def test_closing_ends_busy_and_idle_workers(task, root, state):
    cfg = EnvConfig(num_workers=2, use_cache=False)
    pool = WorkerPool({"toy": task}, root, cfg, make=make_fake_environment)
    pids = pool.worker_pids()
    pool.submit_reset("a", "toy")
    wait_for(pool)
    pool.submit("b", state, write("sleep 100\n"))
    pool.poll(0.2)
    start_s = time.perf_counter()
    pool.close()
    pool.close()
    assert time.perf_counter() - start_s < 4.0
    assert not any(is_alive(pid) for pid in pids)


def test_workers_end_with_a_killed_parent_even_in_a_script(task, root, tmp_path):
    program = f"""
        import sys, time
        sys.path[:0] = [{str(ROOT)!r}]
        from pathlib import Path
        from tests.fakes import make_fake_environment, make_graded_task
        from mlagent_jax.config import EnvConfig
        from mlagent_jax.env.worker_pool import WorkerPool

        script = {{"train.py": "sleep 100\\n"}}
        task = make_graded_task(Path({str(tmp_path)!r}), starter=script)
        cfg = EnvConfig(num_workers=2)
        pool = WorkerPool(
            {{"toy": task}}, Path({str(root)!r}), cfg, make=make_fake_environment
        )
        pool.submit_reset("a", "toy")
        while not any(worker.job for worker in pool._workers):
            pool.poll(0.1)
        print(*pool.worker_pids(), flush=True)
        time.sleep(100)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE
    )
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(is_alive(pid) for pid in pids)


def descendants(pid: int) -> list[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents[int(stat.parent.name)] = int(fields[1])
    found = [pid]
    for parent in found:
        found += [child for child, of in parents.items() if of == parent]
    return found[1:]


def test_a_killed_worker_takes_its_sandbox_and_script_along(tmp_path):
    script = "import time\nopen('submission.csv', 'w').close()\ntime.sleep(60)\n"
    task = make_graded_task(
        tmp_path / "task",
        starter={"train.py": script},
        limits=Limits(wall_s=3.0),
    )
    cfg = EnvConfig(num_workers=1, preload=())
    with WorkerPool({"toy": task}, tmp_path / "store", cfg) as pool:
        (worker,) = pool.worker_pids()
        pool.submit_reset("a", "toy")
        deadline = time.monotonic() + 60
        while len(descendants(worker)) < 2 and time.monotonic() < deadline:
            pool.poll(0.1)
        family = descendants(worker)
        assert len(family) >= 2
        os.kill(worker, signal.SIGKILL)
        result = wait_for(pool)["a"]
        assert "train.py was stopped: it ran longer" in result.error
        assert not any(is_alive(pid) for pid in family)
