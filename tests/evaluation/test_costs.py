"""The ledger counts what records hold, once, and prices it as configured."""

import dataclasses
import json

import pytest

from mlagent_jax.config import CollectConfig, CostConfig, PolicyConfig, RunConfig
from mlagent_jax.config.evaluation import EvalConfig
from mlagent_jax.data.jsonl import append_line
from mlagent_jax.data.trajectories import TrajectoryWriter
from mlagent_jax.errors import ConfigError
from mlagent_jax.evaluation.costs import (
    add_time,
    cost_table,
    make_ledger,
    policy_config,
    read_times,
    spending_path,
)
from mlagent_jax.types import ExecResult, Outcome
from tests.evaluation.test_comparison import make_records
from tests.samples import make_edit, make_step, make_trajectory

RAN = ExecResult(
    outcome=Outcome.INFO,
    exit_code=0,
    signal=None,
    wall_s=2.0,
    cpu_s=1.0,
    max_rss_bytes=1,
    stdout="",
    stderr="",
    stdout_bytes=0,
    stderr_bytes=0,
)
ENDPOINT = PolicyConfig(
    kind="api",
    model="big",
    base_url="http://x",
    prompt_usd_per_million=10.0,
    reply_usd_per_million=40.0,
)


def make_config(**changes):
    settings = {
        "name": "t",
        "init": "folder",
        "collect": CollectConfig(policy=ENDPOINT),
        "eval": EvalConfig(endpoints=(ENDPOINT,)),
        "costs": CostConfig(host_usd_per_hour=1.0, accelerator_usd_per_hour=9.0),
    }
    return RunConfig(**(settings | changes))


def make_run(workdir):
    edit = make_step(make_edit("a", "b"), after=0.7)
    steps = (
        dataclasses.replace(edit, execution=RAN),
        dataclasses.replace(edit, execution=dataclasses.replace(RAN, is_cached=True)),
        make_step("nothing"),
    )
    usage = {"prompt_tokens": 1000.0, "reply_tokens": 100.0}
    with TrajectoryWriter(workdir / "trajectories" / "expert.jsonl") as writer:
        for i in range(2):
            name = f"toy/expert/{i:04d}"
            writer.append(make_trajectory(name, steps, usage=usage))
    (workdir / "stages.json").write_text(json.dumps({"collect": 36.0, "ppo": 360.0}))
    (workdir / "ppo").mkdir()
    lines = [
        {"reply_tokens": 5, "prompt_tokens": 50, "script_s": 1.5, "is_cached": False},
        {"reply_tokens": 5, "prompt_tokens": 50, "script_s": 1.5, "is_cached": True},
        {"reply_tokens": 5, "prompt_tokens": 50, "script_s": 0.0, "is_cached": False},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "ppo" / "rollouts.jsonl").write_text(text)


def test_phases_are_counted_and_priced(tmp_path):
    make_run(tmp_path)
    add_time(tmp_path, "api:big", 3.6)
    add_time(tmp_path, "api:big", 3.6)
    evaluations = {"api:big": make_records("api:big", a=[1.0, 2.0])}
    ledger = make_ledger(make_config(), tmp_path, evaluations)
    collect, ppo, evaluate = ledger
    assert (collect.num_trajectories, collect.num_steps) == (2, 6)
    assert (collect.num_executions, collect.script_s) == (2, 4.0)
    assert (collect.prompt_tokens, collect.reply_tokens) == (2000.0, 200.0)
    assert collect.endpoint_usd == pytest.approx(2000 * 10e-6 + 200 * 40e-6)
    assert collect.machine_usd == pytest.approx(0.01)
    assert (ppo.num_executions, ppo.reply_tokens, ppo.prompt_tokens) == (1, 15, 150)
    assert ppo.machine_usd == pytest.approx(1.0)
    assert (evaluate.wall_s, evaluate.num_trajectories) == (7.2, 2)
    assert evaluate.usd == pytest.approx(0.002)
    total = cost_table(ledger).rows[-1]
    assert total[0] == "total"
    assert total[-1] == f"{collect.usd + ppo.usd + evaluate.usd:.4f}"


def test_answers_that_are_in_no_record_are_a_row_of_their_own(tmp_path):
    make_run(tmp_path)
    path = spending_path(tmp_path, "big")
    append_line(path, {"prompt_tokens": 2500.0, "reply_tokens": 200.0})
    rest = make_ledger(make_config(), tmp_path, {})[-1]
    assert (rest.policy, rest.prompt_tokens, rest.reply_tokens) == ("big", 500.0, 0.0)
    assert rest.usd == pytest.approx(500 * 10e-6)
    assert "ideas" in rest.phase


def test_what_was_not_recorded_is_a_dash_and_no_zero(tmp_path):
    evaluations = {"sft": make_records("sft", a=[1.0])}
    (cost,) = make_ledger(make_config(), tmp_path, evaluations)
    assert (cost.wall_s, cost.usd) == (None, None)
    assert cost_table([cost]).rows[0][2] == "–"
    assert read_times(tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("expert", "api"),
        ("tree:expert", "api"),
        ("api:big", "api"),
        ("sft", "local"),
        ("tree:ppo", "local"),
        ("hf:folder", "local"),
    ],
)
def test_names_of_policies_lead_to_their_settings(name, kind):
    policy = policy_config(make_config(), name)
    assert policy is not None
    assert policy.kind == kind


def test_unknown_names_and_the_starter_have_no_settings():
    assert policy_config(make_config(), "starter") is None
    assert policy_config(make_config(), "api:other") is None


def test_a_money_limit_without_prices_is_refused():
    with pytest.raises(ConfigError, match=r"policy\.max_usd = 1\.0"):
        PolicyConfig(kind="api", max_usd=1.0)
