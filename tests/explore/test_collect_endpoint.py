"""An expert behind an endpoint: budgets stop cleanly, outages end, nothing is lost."""

import dataclasses

import pytest

from mlagent_jax.config import EnvConfig, PolicyConfig, SampleConfig
from mlagent_jax.data.trajectories import TrajectoryFile
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.errors import PolicyError
from mlagent_jax.explore.collect import collect
from mlagent_jax.policy.api import ApiPolicy
from mlagent_jax.policy.spending import Spending
from tests.explore.test_collect import TASK_IDS, FakePool, config, contents
from tests.policy.test_api import KEY, Endpoint, completion
from tests.samples import make_task

__all__ = ["config"]  # The fixture.
STEP = completion(text="<list/>")


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    server = Endpoint()
    server.answers = [(200, {}, STEP)]
    yield server
    server.close()


def run(config, folder, endpoint, spending):
    cfg = PolicyConfig(
        kind="api",
        base_url=endpoint.url,
        model="m",
        api_key_env="TEST_KEY",
        max_concurrency=2,
    )
    policy = ApiPolicy(
        cfg, SampleConfig(), name="expert", first_wait_s=0.001, spending=spending
    )
    store = SnapshotStore(folder)
    try:
        collect(
            dataclasses.replace(config, env=EnvConfig(max_steps=2)),
            folder,
            policy=policy,
            pool=FakePool(store),
            tasks={task_id: make_task(id=task_id) for task_id in TASK_IDS},
            store=store,
            on_done=lambda: None,
            stop_reason=policy.spending.stop_reason,
        )
    finally:
        policy.close()


def make_spending(charges, **limits):
    before = tuple(map(sum, zip(*charges, strict=True))) if charges else (0.0, 0.0)
    return Spending(
        PolicyConfig(kind="api", model="m", max_concurrency=2, **limits),
        before=before,
        on_charge=lambda *tokens: charges.append(tokens),
    )


def test_a_used_up_budget_stops_and_a_larger_one_goes_on(config, tmp_path, endpoint):
    charges = []
    # A step costs 9 tokens, a trajectory 18; five run side by side.
    with pytest.raises(PolicyError, match="max_tokens = 60"):
        run(config, tmp_path, endpoint, make_spending(charges, max_tokens=60))
    num_recorded = sum(map(len, contents(tmp_path).values()))
    assert 4 <= num_recorded <= 60 // 18 + 5
    # Whatever was paid for is in a record.
    assert len(charges) == 2 * num_recorded == len(endpoint.requests)
    with pytest.raises(PolicyError, match=f"{num_recorded} of 12 trajectories"):
        run(config, tmp_path, endpoint, make_spending(charges, max_tokens=60))
    assert len(endpoint.requests) == 2 * num_recorded
    run(config, tmp_path, endpoint, make_spending(charges, max_tokens=1_000))
    assert sum(map(len, contents(tmp_path).values())) == 12
    assert len(charges) == 24 == len(endpoint.requests)


def test_an_outage_ends_the_stage_and_the_same_command_makes_up_for_it(
    config, tmp_path, endpoint
):
    endpoint.answers = [(200, {}, STEP)] * 9 + [(401, {}, {"error": "no credit"})]
    with pytest.raises(PolicyError, match=r"\d+ requests in a row failed.*no credit"):
        run(config, tmp_path, endpoint, make_spending([]))
    num_recorded = sum(map(len, contents(tmp_path).values()))
    assert num_recorded < 12
    assert len(endpoint.requests) < 9 + 12
    endpoint.answers = [(200, {}, STEP)]
    run(config, tmp_path, endpoint, make_spending([]))
    assert sum(map(len, contents(tmp_path).values())) == 12


def test_token_counts_of_the_endpoint_are_in_the_records(config, tmp_path, endpoint):
    run(config, tmp_path, endpoint, make_spending([]))
    for trajectory in TrajectoryFile(tmp_path / "expert.jsonl"):
        assert trajectory.usage["prompt_tokens"] == 14
        assert trajectory.usage["reply_tokens"] == 4
