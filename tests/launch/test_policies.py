"""Names of policies, and sums that survive the end of a program."""

import pytest

from launch import common
from launch.policies import make_policy, open_spending, stop_reason_of
from mlagent_jax.config import PolicyConfig, RunConfig
from mlagent_jax.config.evaluation import EvalConfig
from mlagent_jax.errors import ConfigError
from mlagent_jax.policy.api import ApiPolicy

ENDPOINT = PolicyConfig(
    kind="api",
    base_url="http://127.0.0.1:9/v1",
    model="org/big",
    api_key_env="TEST_KEY",
    max_tokens=100,
)


def make_run(workdir):
    config = RunConfig(name="t", init="x", eval=EvalConfig(endpoints=(ENDPOINT,)))
    return common.Run(config=config, workdir=workdir)


def test_an_endpoint_is_named_by_its_model_also_under_a_search(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "k")
    for name in ("api:org/big", "tree:api:org/big"):
        policy = make_policy(make_run(tmp_path), name)
        policy.close()
        assert isinstance(policy, ApiPolicy)
        assert policy.name == name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("api:small", r"no such model; it has \['org/big'\]"),
        ("gpt", "expected starter, expert, sft, ppo"),
        ("tree:gpt", "tree:<one of these>"),
    ],
)
def test_unknown_names_are_refused(tmp_path, name, text):
    with pytest.raises(ConfigError, match=text):
        make_policy(make_run(tmp_path), name)


def test_what_was_spent_is_remembered_by_the_next_program(tmp_path):
    open_spending(ENDPOINT, tmp_path).charge(60.0, 30.0)
    # A program that is killed while it writes leaves half a line.
    (path,) = (tmp_path / "spending").iterdir()
    with path.open("a") as file:
        file.write('{"prompt_tok')
    spending = open_spending(ENDPOINT, tmp_path)
    assert spending.tokens == 90
    assert spending.stop_reason() == ""
    spending.charge(10.0, 0.0)
    assert "max_tokens = 100" in open_spending(ENDPOINT, tmp_path).stop_reason()


def test_policies_without_an_endpoint_never_stop(tmp_path):
    assert stop_reason_of(make_policy(make_run(tmp_path), "starter"))() == ""
