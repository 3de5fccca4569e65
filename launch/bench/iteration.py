"""What a whole step-wise PPO iteration takes, with a real environment.

Real prompts of real offline tasks, the sampler, scripts in a pool of sandboxed
workers, rewards, scoring, actor and critic updates: `rl.loop.train_ppo` as it is.
The weights are random, which changes no cost, but random replies would execute
nothing; so the workers get, when a sampled reply is finished, what the scripted
expert says to the same prompt. Both orders are measured: sampling after the update
before it, and during it (`ppo.max_staleness`).

    python -m launch.bench.iteration <rounds> <folder> <output.json>
"""

import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax

from launch import common
from launch.bench import iteration_config
from launch.bench.child import ROOT
from mlagent_jax.config import RunConfig
from mlagent_jax.data.state_pool import StatePool
from mlagent_jax.data.trajectories import TrajectoryFile
from mlagent_jax.env.pools import make_pool
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.task import load_tasks
from mlagent_jax.explore.ideas import load_moves
from mlagent_jax.model import qwen2
from mlagent_jax.policy.base import Policy, Reply, Request
from mlagent_jax.policy.local import LocalPolicy
from mlagent_jax.policy.scripted import ScriptedPolicy
from mlagent_jax.rl.collect import collect_rollout
from mlagent_jax.rl.loop import train_ppo
from mlagent_jax.rl.rollout import OnSampled, Rollout
from mlagent_jax.rl.timeline import Timeline
from mlagent_jax.train.pretrain import prepare_tokenizer
from mlagent_jax.train.state import Params

_ORDERS = {"sample_then_update": 0, "sample_during_update": 1}
_UNTIMED = 2  # iterations that compile


class SpokenFor:
    """A policy that samples, and is reported to have said what another one says."""

    def __init__(self, sampler: Policy, speaker: Policy) -> None:
        """Wraps `sampler`; `speaker` must answer at its next poll."""
        self.name = sampler.name
        self._sampler, self._speaker = sampler, speaker
        self._texts: dict[str, str] = {}

    def submit(self, request: Request) -> None:
        """Queues `request` with both."""
        self._sampler.submit(request)
        self._speaker.submit(request)

    def poll(self) -> list[Reply]:
        """Returns the sampler's finished replies with the speaker's texts."""
        self._texts |= {r.request_id: r.text for r in self._speaker.poll()}
        return [
            dataclasses.replace(reply, text=self._texts.pop(reply.request_id))
            for reply in self._sampler.poll()
        ]

    def num_pending(self) -> int:
        """Returns how many replies the sampler owes."""
        return self._sampler.num_pending()

    def close(self) -> None:
        """Closes both."""
        self._sampler.close()
        self._speaker.close()


def measure(rounds: int, folder: Path) -> dict[str, Any]:
    """Returns order -> seconds of an iteration and its parts, [median, min, max].

    Args:
      rounds: timed iterations of each order.
      folder: gets the run, with a timeline.json for each order.
    """
    config = iteration_config.get_config()
    run = folder / "ppo_iteration"
    for stage in ("prepare", "collect"):
        command = [sys.executable, "-m", f"launch.{stage}", f"--workdir={run}"]
        config_flag = f"--config={iteration_config.__file__}"
        subprocess.run([*command, config_flag], check=True, cwd=ROOT)
    return {
        order: _summarize(_train(config, run, order, rounds), config)
        for order in _ORDERS
    }


def _train(
    config: RunConfig, run: Path, order: str, rounds: int
) -> list[dict[str, float]]:
    """Returns the metrics of the timed iterations."""
    ppo = dataclasses.replace(
        config.ppo, num_updates=rounds + _UNTIMED, max_staleness=_ORDERS[order]
    )
    config = dataclasses.replace(config, ppo=ppo)
    model_cfg = config.model
    assert model_cfg is not None
    graphdef = qwen2.make_graphdef(model_cfg)
    params = jax.jit(qwen2.init_params, static_argnums=0)(model_cfg, jax.random.key(0))
    tasks = load_tasks(config, run)
    held_in = {task_id: tasks[task_id] for task_id in config.held_in}
    store = SnapshotStore(run / "trajectories")
    states = StatePool([TrajectoryFile(run / "trajectories/expert.jsonl")], held_in)
    directory = run / order
    shutil.rmtree(directory, ignore_errors=True)
    timeline = Timeline()
    with ExitStack() as stack:
        workers = stack.enter_context(make_pool(tasks, store.root, config.env))
        sampler = LocalPolicy(
            name="ppo",
            graphdef=graphdef,
            params=params,
            tokenizer=prepare_tokenizer(config, run),
            cfg=config.sample,
            max_prompt_tokens=config.prompt.max_prompt_tokens,
        )
        expert = ScriptedPolicy(load_moves(config.task_root, config.held_in))
        policy = SpokenFor(sampler, expert)
        stack.callback(policy.close)

        def collect(
            update: int, params: Params, on_sampled: OnSampled | None
        ) -> Rollout:
            sampler.set_params(jax.tree.map(lambda x: x.copy(), params))
            return collect_rollout(
                update,
                config=config,
                policy=policy,
                workers=workers,
                states=states,
                tasks=held_in,
                store=store,
                timeline=timeline,
                on_sampled=on_sampled,
            )

        train_ppo(
            config,
            directory,
            graphdef=graphdef,
            model_cfg=model_cfg,
            take_policy=lambda: params,
            collect=collect,
            probe=lambda _: [],
            progress=common.progress,
            timeline=timeline,
        )
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    records: list[dict[str, float]] = [json.loads(line) for line in lines]
    for before, record in zip(records, records[1:], strict=False):
        record["iteration_s"] = record["train_s"] - before["train_s"]
    return records[_UNTIMED:]


def _summarize(records: list[dict[str, float]], config: RunConfig) -> dict[str, Any]:
    for record in records:
        record["script_s_a_worker"] = record["script_s"] / config.env.num_workers
    names = {
        "iteration_s": "iteration_s",
        "rollout_s": "rollout_s",
        "sampling_s": "sample_s",
        "scripts_s_a_worker": "script_s_a_worker",
        "scoring_s": "score_s",
        "update_s": "update_s",
        "idle_frac": "idle_frac",
        "executions": "num_executions",
        "reply_tokens": "reply_tokens",
    }
    return {
        name: [
            round(pick(record[key] for record in records), 3)
            for pick in (statistics.median, min, max)
        ]
        for name, key in names.items()
    }


if __name__ == "__main__":
    found = measure(int(sys.argv[1]), Path(sys.argv[2]))
    Path(sys.argv[3]).write_text(json.dumps(found))
