"""Which task and policy a command means, and what is left of a run."""

import dataclasses
import json

import pytest

from launch import agent_page
from launch.run_agent import resolve_agent, resolve_task
from mlagent_jax.config import EnvConfig, PromptConfig, RunConfig
from mlagent_jax.env.advance import advance
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.step_loop import StepJob
from mlagent_jax.errors import ConfigError
from mlagent_jax.text.actions import render_action
from mlagent_jax.types import Action, ActionKind, to_json
from tests.fakes import make_fake_environment, make_graded_task
from tests.samples import make_trajectory

BASE = RunConfig(name="agent", init="")


def test_a_task_is_a_folder_or_a_name(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "task.toml").touch()
    expected = (tmp_path / "mine").resolve()
    assert resolve_task(str(tmp_path / "mine")) == expected
    assert resolve_task("mine", str(tmp_path)) == expected
    with pytest.raises(ConfigError, match="did you mean.*mine|mine"):
        resolve_task("mime", str(tmp_path))


def test_policies_are_named_in_four_ways(tmp_path):
    hf, run = tmp_path / "qwen", tmp_path / "run"
    hf.mkdir()
    (hf / "config.json").touch()
    (run / "ppo" / "checkpoints").mkdir(parents=True)
    prompt = PromptConfig(style="brief", history_steps=0)
    recorded = RunConfig(name="run", init=str(hf), prompt=prompt)
    (run / "run.json").write_text(json.dumps({"config": to_json(recorded)}))
    assert resolve_agent("starter", BASE, tmp_path).cfg is None
    assert resolve_agent("scripted", BASE, tmp_path).cfg.kind == "scripted"
    api = resolve_agent("api:a/b@http://x:1/v1", BASE, tmp_path)
    assert (api.cfg.model, api.cfg.base_url) == ("a/b", "http://x:1/v1")
    assert api.label == "api-a-b"
    assert resolve_agent(str(hf), BASE, tmp_path).cfg.checkpoint == str(hf)
    stage = resolve_agent(str(run / "ppo"), BASE, tmp_path)
    assert (stage.cfg.checkpoint, stage.run.workdir) == ("ppo", run)
    assert stage.run.config.prompt == prompt
    assert stage.run.config.env == BASE.env


@pytest.mark.parametrize("text", ["api:model", "api:@http://x", "nowhere", ""])
def test_an_unknown_policy_is_explained(tmp_path, text):
    with pytest.raises(ConfigError, match=r"expected .*api:<model>@<url>"):
        resolve_agent(text, BASE, tmp_path)


def test_the_best_script_and_a_page_are_left(tmp_path):
    task = make_graded_task(tmp_path / "task")
    store = SnapshotStore(tmp_path / "trajectories")
    cfg = EnvConfig(use_cache=False)
    env = make_fake_environment({"toy": task}, store.root, cfg)
    start = env.reset("toy")
    state, lines = start.state, []
    watcher = agent_page.Watcher(task, num_trajectories=1)
    for script in ["right 30\n", "right 10\n", "warn Boom\nexit 1\n"]:
        action = Action(kind=ActionKind.WRITE, path="train.py", content=script)
        step = env.step(state, render_action(action))
        job = StepJob(id="a", state=state, seed=0)
        lines.append(watcher.format_step(job, step))
        state = advance(state, step)
    trajectory = make_trajectory(
        start_snapshot=start.state.snapshot,
        start_submission=start.submission,
        steps=state.steps,
    )
    page = agent_page.write_results(tmp_path, task, [trajectory], store)
    assert (tmp_path / "best" / "train.py").read_text() == "right 30\n"
    assert b"0,1" in (tmp_path / "best" / "submission.csv").read_bytes()
    assert (tmp_path / "summary.md").read_text() == page
    assert "step 1 of toy/expert/0000" in page
    assert "better" in lines[0]
    assert "+right 30" in lines[0]
    assert "0.75 -> 0.25" in lines[1]
    assert "Boom" in lines[2]
    empty = dataclasses.replace(trajectory, steps=())
    assert "starter" in agent_page.write_results(tmp_path, task, [empty], store)
