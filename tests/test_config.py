"""Configs: overrides, did-you-mean, ranges; every file of configs/ builds."""

from pathlib import Path

import pytest

from mlagent_jax.config import (
    CollectConfig,
    Grid,
    MeshConfig,
    ModelConfig,
    PpoConfig,
    RunConfig,
    apply_override,
    apply_overrides,
    load_config,
    load_grid,
)
from mlagent_jax.errors import ConfigError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def config():
    return RunConfig(name="test", init="some/folder")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=str)
def test_every_config_builds(path):
    if "def get_grid" in path.read_text():
        assert isinstance(load_grid(str(path)), Grid)
    else:
        assert isinstance(load_config(str(path)), RunConfig)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("seed=3", lambda c: c.seed == 3),
        ("ppo.actor.peak_lr=1e-4", lambda c: c.ppo.actor.peak_lr == 1e-4),
        ("ppo.kl_coef=0", lambda c: c.ppo.kl_coef == 0.0),
        ("prompt.history_steps=none", lambda c: c.prompt.history_steps is None),
        ("prompt.history_steps=2", lambda c: c.prompt.history_steps == 2),
        ("ppo.reward.preset=bounded", lambda c: c.ppo.reward.preset == "bounded"),
        ("held_in=['a','b']", lambda c: c.held_in == ("a", "b")),
        ("env.use_cache=false", lambda c: c.env.use_cache is False),
        ("init=other/folder", lambda c: c.init == "other/folder"),
        ("sample.stop=('x',)", lambda c: c.sample.stop == ("x",)),
    ],
)
def test_an_override_changes_one_field(config, override, read):
    changed = apply_override(config, override)
    assert read(changed)
    name = override.split("=")[0].split(".")[0]
    assert all(
        getattr(changed, f) == getattr(config, f)
        for f in config.__dataclass_fields__
        if f != name
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo.actr.peak_lr=1", "did you mean 'actor'"),
        ("ppo.kl_coeff=1", "did you mean 'kl_coef'"),
        ("ppo.reward.preset=bouned", "did you mean 'bounded'"),
        ("seed=abc", "expected .*int"),
        ("seed=1.5", "expected .*int"),
        ("seed=true", "expected .*int"),
        ("seed", "expected path=value"),
        ("seed.x=1", "has no fields"),
        ("env.num_workers=0", "env.num_workers = 0: expected >= 1"),
        ("held_in=[1,2]", "expected .*str"),
        ("sample.prompt_buckets=[64,32]", "ascending"),
        ("sample.top_p=1.5", r"in \(0, 1\]"),
    ],
)
def test_a_bad_override_names_field_value_and_what_would_do(config, override, message):
    with pytest.raises(ConfigError, match=message):
        apply_override(config, override)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MeshConfig(data=-1, fsdp=-1), "at most one -1"),
        (lambda: CollectConfig(selected_ideas=500), "selected_ideas = 500"),
        (lambda: PpoConfig(minibatch_size=48), "divisor of 64 samples"),
        (
            lambda: ModelConfig(
                vocab_size=8,
                hidden_size=8,
                intermediate_size=8,
                num_layers=1,
                num_heads=3,
                num_kv_heads=2,
                head_dim=4,
            ),
            "divisor of num_heads = 3",
        ),
        (lambda: RunConfig(name="x"), "at least one of them"),
        (
            lambda: RunConfig(name="x", init="a", held_in=("t",), held_out=("t",)),
            "no task that is also held in",
        ),
    ],
)
def test_a_value_out_of_range_is_refused_when_the_config_is_built(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_missing_config_file_names_the_nearest(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=r"did you mean configs/quickstart\.py"):
        load_config("configs/quickstrat.py")


def test_a_file_without_get_config_is_refused(tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    with pytest.raises(ConfigError, match="defines no get_config"):
        load_config(str(path))


def test_none_may_be_a_choice():
    config = load_config(str(ROOT / "configs/qwen2_5_7b_sft.py"))
    assert config.model is not None
    assert apply_override(config, "model.remat=none").model.remat == "none"
    assert apply_override(config, "model.remat='layer'").model.remat == "layer"
    with pytest.raises(ConfigError, match="expected one of .* did you mean 'layer'"):
        apply_override(config, "model.remat=layers")


def test_fields_that_must_fit_each_other_change_together(config):
    changes = ["ppo.states_per_update=9", "ppo.minibatch_size=72"]
    changes += ["ppo.micro_batch_size=72", "ppo.mode=episode", "ppo.kl.target=0.1"]
    changed = apply_overrides(config, changes)
    assert changed.ppo.rows_per_update == changed.ppo.minibatch_size == 72
    assert changed.ppo.kl.target == 0.1
    with pytest.raises(ConfigError, match="minibatch_size = 64: expected a divisor"):
        apply_overrides(config, changes[:1])
    assert apply_overrides(config, ["seed=1", "seed=2"]).seed == 2
