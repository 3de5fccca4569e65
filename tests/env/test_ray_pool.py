"""The pool on Ray: the same answers, and a lost node loses no sample silently."""

import logging
import time

import pytest

from mlagent_jax.config import EnvConfig
from mlagent_jax.env.pools import make_pool
from mlagent_jax.env.ray_pool import RayPool
from mlagent_jax.env.worker_pool import WorkerPool
from mlagent_jax.errors import ConfigError
from mlagent_jax.text.actions import render_action
from mlagent_jax.types import Action, ActionKind
from tests.fakes import make_graded_task, make_noted_environment

ray = pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.slow

# Room for the cluster's start on a busy machine.
TIMEOUT_S = 300.0
NUM_STARTS = 3
NUM_JOBS = 24


def write(script):
    action = Action(kind=ActionKind.WRITE, path="train.py", content=script)
    return render_action(action)


def wait_for(pool, on_result=lambda: None):
    results = {}
    deadline_s = time.monotonic() + TIMEOUT_S
    while pool.num_pending() and time.monotonic() < deadline_s:
        for result in pool.poll(1.0):
            assert result.job_id not in results
            results[result.job_id] = result
            on_result()
    assert pool.num_pending() == 0
    return results


def wait_until(is_so):
    deadline_s = time.monotonic() + TIMEOUT_S
    while not is_so() and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert is_so()


@pytest.fixture(name="cluster")
def fixture_cluster():
    """A head without CPUs for workers and two nodes with two each."""
    cluster, nodes = start_cluster()
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()


def start_cluster():
    """Starts head and nodes, again if one is late.

    Ray gives each 30 s, which cannot be set. On two cores they take 2 to 4 s, with a
    thirtieth of them up to 40 s.
    """
    # Nodes are found lost in seconds, as the heartbeat of a real cluster would.
    settings = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 4,
    }
    for attempt in range(NUM_STARTS):
        cluster = cluster_utils.Cluster()
        try:
            cluster.add_node(num_cpus=0, _system_config=settings)
            nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
            cluster.wait_for_nodes(TIMEOUT_S)
        except Exception:
            cluster.shutdown()
            if attempt == NUM_STARTS - 1:
                raise
        else:
            return cluster, nodes
    raise AssertionError


def test_a_lost_node_loses_no_sample_silently(cluster, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    cluster, nodes = cluster
    task = make_graded_task(tmp_path / "task")
    cfg = EnvConfig(
        num_workers=4, use_cache=False, backend="ray", ray_address=cluster.address
    )
    store = tmp_path / "store"
    with RayPool({"toy": task}, store, cfg, make=make_noted_environment) as pool:
        pool.submit_reset("start", "toy")
        state = wait_for(pool)["start"].value.state
        wait_until(lambda: len(list(store.glob("*.made"))) == 4)

        # Two of four workers go with their node, in the middle of a job each.
        answers: list[float] = []

        def lose_a_node() -> None:
            answers.append(time.monotonic())
            if len(answers) == 5:
                cluster.remove_node(nodes[1], allow_graceful=False)

        for i in range(NUM_JOBS):
            pool.submit(f"job{i}", state, write(f"sleep 1\nright {i - i % 2}\n"))
        results = wait_for(pool, lose_a_node)
        assert set(results) == {f"job{i}" for i in range(NUM_JOBS)}
        for i in range(NUM_JOBS):
            assert results[f"job{i}"].value.score_after == (i - i % 2) / 40
        again = [r.message for r in caplog.records if "at job" in r.message]
        assert len(again) == 2
        assert all("attempt 1" in message for message in again)
        seconds = answers[-1] - answers[4]
        print(f"{NUM_JOBS - 5} jobs {seconds:.1f} s after the loss; {again}")

        # A worker that dies once, and one that dies each time.
        pool.submit("once", state, write(f"die_once {tmp_path / 'mark'}\nright 30\n"))
        pool.submit("always", state, write("die\n"))
        results = wait_for(pool)
        assert results["once"].value.score_after == 0.75
        assert results["always"].value is None
        assert "was lost (ActorDiedError), 2 times" in results["always"].error


def test_the_config_chooses_the_pool(tmp_path):
    with make_pool({}, tmp_path, EnvConfig(num_workers=1)) as pool:
        assert isinstance(pool, WorkerPool)
    cfg = EnvConfig(backend="ray", ray_address="127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"env.ray_address = '127.0.0.1:1': no Ray"):
        make_pool({}, tmp_path, cfg)
