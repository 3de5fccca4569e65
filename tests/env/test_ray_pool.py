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
from tests.fakes import make_fake_environment, make_graded_task

ray = pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.slow

# Room for the cluster's start on a busy machine.
TIMEOUT_S = 300.0


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


@pytest.fixture(name="cluster")
def fixture_cluster(monkeypatch):
    """A head without CPUs for workers and two nodes with two each."""
    # Nodes are found lost in seconds, as the heartbeat of a real cluster would.
    settings = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 4,
    }
    cluster = cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "_system_config": settings},
    )
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    cluster.wait_for_nodes()
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()


def test_a_lost_node_loses_no_sample_silently(cluster, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    cluster, nodes = cluster
    task = make_graded_task(tmp_path / "task")
    cfg = EnvConfig(
        num_workers=4, use_cache=False, backend="ray", ray_address=cluster.address
    )
    with RayPool(
        {"toy": task}, tmp_path / "store", cfg, make=make_fake_environment
    ) as pool:
        pool.submit_reset("start", "toy")
        state = wait_for(pool)["start"].value.state
        for i in range(0, 40, 4):
            pool.submit(f"before{i}", state, write(f"right {i}\n"))
        before = wait_for(pool)
        assert [before[f"before{i}"].value.score_after for i in range(0, 40, 4)] == [
            i / 40 for i in range(0, 40, 4)
        ]
        # Two of four workers go with their node, in the middle of the work.
        lost: list[bool] = []

        def lose_a_node() -> None:
            if not lost:
                lost.append(True)
                cluster.remove_node(nodes[1], allow_graceful=False)

        for i in range(24):
            pool.submit(f"job{i}", state, write(f"right {i}\n"))
        after = wait_for(pool, lose_a_node)
    assert lost
    assert set(after) == {f"job{i}" for i in range(24)}
    for i in range(24):
        result = after[f"job{i}"]
        if result.value is None:
            assert "was lost" in result.error
        else:
            assert result.value.score_after == i / 40
    assert sum(r.value is not None for r in after.values()) >= 20


def test_the_config_chooses_the_pool(tmp_path):
    with make_pool({}, tmp_path, EnvConfig(num_workers=1)) as pool:
        assert isinstance(pool, WorkerPool)
    cfg = EnvConfig(backend="ray", ray_address="127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"env.ray_address = '127.0.0.1:1': no Ray"):
        make_pool({}, tmp_path, cfg)
