"""Lets a policy work on a task and shows what it does.

    python -m launch.run_agent --task=digits --policy=scripted
    python -m launch.run_agent --task=my_task --policy=starter
    python -m launch.run_agent --task=my_task --policy=runs/quickstart/ppo
    python -m launch.run_agent --task=my_task --policy=Qwen2.5-7B-Instruct --minutes=60
    python -m launch.run_agent --task=my_task --policy=api:my-model@http://host:8000/v1

--task is a task folder (tasks/README.md; `python -m launch.tasks new` makes one from a
CSV file) or the name of one under tasks/. --policy is one of:

    starter            submits the starter script as it is
    scripted           the offline expert; needs a moves.toml in the task folder
    <run>/sft, <run>/ppo, <run>/<stage>   weights of a stage of a run
    <folder>           a Hugging Face folder
    api:<model>@<url>  any OpenAI-compatible endpoint; its key is in OPENAI_API_KEY

Every step is printed as it ends. The run directory (--workdir) gets trajectories/ (all
records; `python -m launch.replay` repeats them), best/ (the files and the submission
with the best selection score) and summary.md. The same command continues a run that was
stopped, and more --trajectories add to it.
"""

import dataclasses
import re
import sys
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging

from launch import agent_page, common, exits, run_record
from launch.policies import make_configured_policy, make_policy
from launch.pools import open_pool
from mlagent_jax.config import EnvConfig, PolicyConfig, RunConfig, apply_override
from mlagent_jax.data.trajectories import TrajectoryFile, TrajectoryWriter
from mlagent_jax.env.runner import TrajectorySpec, run_trajectories
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.task import (
    imported_dir,
    load_task,
    prepare_task,
    prepared_dir,
)
from mlagent_jax.env.task_rules import nearest_name
from mlagent_jax.errors import ConfigError, EnvUnavailableError, MlAgentError
from mlagent_jax.policy.base import Policy
from mlagent_jax.types import ProfileName, Task

_TASK = flags.DEFINE_string("task", None, "Task folder, or a name under tasks/.")
_POLICY = flags.DEFINE_string("policy", None, "Who works; see above.")
_STEPS = flags.DEFINE_integer("steps", 15, "Steps of a trajectory.", lower_bound=1)
_MINUTES = flags.DEFINE_float("minutes", 30.0, "Minutes of a trajectory.")
_PROFILE = flags.DEFINE_enum(
    "profile", "direct", ["direct", "mlab"], "How actions are written."
)
_TRAJECTORIES = flags.DEFINE_integer(
    "trajectories", 1, "How many to run, earlier ones included.", lower_bound=1
)
_EDITOR = flags.DEFINE_string(
    "editor",
    "",
    "Profile mlab: who edits files, as --policy; default: the policy itself, or "
    "an editor that follows exact instructions where that is no model.",
)

TRAJECTORIES_FILE = "agent.jsonl"
_SECONDS = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agent:
    """A policy and the settings that belong to it.

    Attributes:
      run: its config has the prompt and sampling that the policy expects.
      cfg: what to build; None for "starter".
      label: name in records and file names.
    """

    run: common.Run
    cfg: PolicyConfig | None
    label: str


def resolve_task(text: str, task_root: str = "tasks") -> Path:
    """Returns the task folder that `text` names.

    Raises:
      ConfigError: there is none; the nearest name is given.
    """
    for folder in (Path(text), Path(task_root) / text):
        if (folder / "task.toml").is_file():
            return folder.resolve()
    known = sorted(path.parent.name for path in Path(task_root).glob("*/task.toml"))
    raise ConfigError(
        f"--task={text}: no folder with a task.toml, and no task of {task_root}/"
        f"{nearest_name(text, known)}"
    )


def resolve_agent(text: str, base: RunConfig, workdir: Path) -> Agent:
    """Returns the policy that `text` names.

    Weights of a stage keep the prompt and sampling of their run, which they were
    trained with.

    Raises:
      ConfigError: there is no such policy.
    """
    here = common.Run(config=base, workdir=workdir)
    if text in ("starter", "scripted", "expert"):
        cfg = None if text == "starter" else PolicyConfig(kind="scripted")
        return Agent(run=here, cfg=cfg, label=text)
    if text.startswith("api:"):
        model, separator, url = text.removeprefix("api:").rpartition("@")
        if not separator or not model:
            raise ConfigError(f"--policy={text}: expected api:<model>@<url>")
        cfg = PolicyConfig(kind="api", model=model, base_url=url)
        return Agent(run=here, cfg=cfg, label=_as_name(f"api-{model}"))
    folder = Path(text)
    label = _as_name("-".join(folder.parts[-2:]))
    if (folder / "config.json").is_file():
        cfg = PolicyConfig(kind="local", checkpoint=str(folder))
        return Agent(run=here, cfg=cfg, label=label)
    if (folder / "checkpoints").is_dir() and (folder.parent / "run.json").is_file():
        theirs = common.recorded_run(folder.parent).config
        config = dataclasses.replace(
            base,
            init=theirs.init,
            model=theirs.model,
            tokenizer=theirs.tokenizer,
            prompt=theirs.prompt,
            sample=theirs.sample,
        )
        run = common.Run(config=config, workdir=folder.parent)
        cfg = PolicyConfig(kind="local", checkpoint=folder.name)
        return Agent(run=run, cfg=cfg, label=label)
    raise ConfigError(
        f"--policy={text}: expected starter, scripted, api:<model>@<url>, a Hugging "
        "Face folder (with config.json) or a stage of a run (with checkpoints/)"
    )


def run_agent(workdir: Path, folder: Path, policy_name: str) -> None:
    """Runs what is missing of the trajectories and writes the summary.

    Args:
      workdir: run directory.
      folder: task folder.
      policy_name: as --policy.

    Raises:
      EnvUnavailableError: a trajectory could not be recorded.
    """
    base, task = _prepare(workdir, folder)
    agent = resolve_agent(policy_name, base, workdir)
    config = dataclasses.replace(agent.run.config, editor=_editor_config(agent))
    run = common.Run(config=config, workdir=agent.run.workdir)
    run_record.write_json(
        workdir / "run.json",
        {"config": config, "command": sys.argv, "policy": policy_name},
    )
    trajectories = workdir / "trajectories"
    store = SnapshotStore(trajectories)
    path = trajectories / TRAJECTORIES_FILE
    with (
        TrajectoryWriter(path) as writer,
        open_pool(run, {task.id: task}, store) as (pool),
    ):
        specs = [
            TrajectorySpec(id=name, task_id=task.id, seed=number)
            for number in range(_TRAJECTORIES.value)
            if (name := f"{task.id}/{agent.label}/{number:03d}") not in writer.ids
        ]
        policy = _make_policy(run, agent)
        print(agent_page.task_heading(task, policy.name, config.env), flush=True)
        watcher = agent_page.Watcher(task, num_trajectories=len(specs))
        try:
            for trajectory in run_trajectories(
                specs,
                policy=policy,
                pool=pool,
                tasks={task.id: task},
                store=store,
                prompt=config.prompt,
                env=config.env,
                num_in_flight=config.env.num_workers,
                on_step=watcher.show_step,
            ):
                writer.append(trajectory)
                watcher.show_end(trajectory)
        finally:
            policy.close()
        wanted = {spec.id for spec in specs}
        lost = len(wanted - set(writer.ids))
    done = [
        t
        for t in TrajectoryFile(path)
        if t.task_id == task.id and f"/{agent.label}/" in t.id
    ]
    if done:
        page = agent_page.write_results(workdir, task, done, store)
        print(page, flush=True)
    if lost:
        raise EnvUnavailableError(
            f"{lost} trajectories could not be recorded, see the warnings above; the "
            "same command tries them again"
        )


def _prepare(workdir: Path, folder: Path) -> tuple[RunConfig, Task]:
    """Returns the configuration that the flags describe, and the task with its data."""
    profile: ProfileName = "mlab" if _PROFILE.value == "mlab" else "direct"
    config = RunConfig(
        name="agent",
        task_root=str(folder.parent),
        init="",  # no weights of its own; a stage of a run brings its model along
        env=EnvConfig(
            profile=profile,
            max_steps=_STEPS.value,
            max_time_s=_SECONDS * _MINUTES.value,
        ),
    )
    for override in common.given_overrides():
        config = apply_override(config, override)
    prepared = prepared_dir(config, workdir, folder)
    is_imported = imported_dir(config, folder) is not None
    task = (load_task if is_imported else prepare_task)(folder, prepared)
    ids = (task.id,)
    if task.split == "held_in":
        return dataclasses.replace(config, held_in=ids), task
    return dataclasses.replace(config, held_out=ids), task


def _editor_config(agent: Agent) -> PolicyConfig:
    """Returns who edits: as --editor says, else the policy itself if it is a model.

    Raises:
      ConfigError: --editor names no policy that can edit.
    """
    if _EDITOR.value:
        editor = resolve_agent(_EDITOR.value, agent.run.config, agent.run.workdir)
        if editor.cfg is None:
            raise ConfigError(f"--editor={_EDITOR.value}: cannot edit")
        return editor.cfg
    return agent.cfg or PolicyConfig(kind="scripted")


def _make_policy(run: common.Run, agent: Agent) -> Policy:
    if agent.cfg is None:
        return make_policy(run, "starter")
    return make_configured_policy(run, agent.cfg, agent.label)


def _as_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        exits.fail(f"unexpected arguments {argv[1:]}; see --help")
    absl_logging.set_verbosity(absl_logging.WARNING)
    try:
        if not _TASK.value or not _POLICY.value:
            raise ConfigError("--task and --policy are required; --help explains them")
        folder = resolve_task(_TASK.value)
        name = f"{folder.name}-{_as_name(_POLICY.value)}"
        if _PROFILE.value != "direct":
            name += f"-{_PROFILE.value}"
        workdir = common.workdir_or(Path("runs") / "agent" / name).resolve()
        workdir.mkdir(parents=True, exist_ok=True)
        run_agent(workdir, folder, _POLICY.value)
    except MlAgentError as error:
        exits.fail(str(error))
    except KeyboardInterrupt:
        exits.fail("interrupted; the same command continues", status=130)


if __name__ == "__main__":
    app.run(_main)
