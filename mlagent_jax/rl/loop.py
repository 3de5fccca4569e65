"""The training loop of step-wise PPO.

One update is four stages:

1. sample      Draw states from the pool. The policy writes one action for each; CPU
               workers execute it while the sampler goes on.      `rollout`
2. score       The trainer computes the log-probabilities of those replies under the
               policy and the frozen reference, and the critic's values, while the
               last scripts run.                                            `learner`
3. advantages  Step reward on the last token of each reply, KL penalty on every one;
               generalized advantage estimates, whitened.    `advantages`, `ppo`
4. update      Clipped policy and value losses on shuffled minibatches.
               `losses`, `ppo`

`train_ppo` is the loop, over any source of rollouts; `run_ppo` connects it to the
files of a run: fine-tuned policy, trajectories, tasks, workers. Everything random
follows from (seed, update), so a run that was killed ends with the same parameters.
`rollout_source` may move stage 1 of an update into stage 4 of the one before.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any

import jax
from jax.sharding import Mesh

from mlagent_jax.config import ModelConfig, PpoConfig, RunConfig
from mlagent_jax.data.state_pool import StatePool
from mlagent_jax.data.trajectories import TrajectoryFile
from mlagent_jax.env.editor import EditingPool
from mlagent_jax.env.pools import make_pool
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.step_loop import Pool
from mlagent_jax.env.task import load_tasks
from mlagent_jax.errors import ConfigError, DivergedError, RunInterruptedError
from mlagent_jax.model import hf, qwen2
from mlagent_jax.parallel import hosts
from mlagent_jax.parallel.fit import check_stage
from mlagent_jax.parallel.hosts import Replica
from mlagent_jax.parallel.mesh import make_mesh
from mlagent_jax.policy.base import Policy
from mlagent_jax.policy.local import LocalPolicy
from mlagent_jax.rl.batch import TokenSample
from mlagent_jax.rl.collect import collect_rollout
from mlagent_jax.rl.learner import Learner
from mlagent_jax.rl.own_states import OwnStates
from mlagent_jax.rl.ppo import PpoState
from mlagent_jax.rl.probe import ScoreTrajectory, run_probe
from mlagent_jax.rl.records import UpdateLog
from mlagent_jax.rl.rollout import (
    OnSampled,
    Rollout,
    rollout_metrics,
    rollout_records,
)
from mlagent_jax.rl.rollout_source import CollectRollout, RolloutSource
from mlagent_jax.rl.timeline import Timeline
from mlagent_jax.text.tokenizer import Tokenizer
from mlagent_jax.train.checkpoint import Checkpoints, fingerprint, load_params
from mlagent_jax.train.lm import Progress, abstract_on_mesh
from mlagent_jax.train.metrics import MetricsWriter
from mlagent_jax.train.state import Params
from mlagent_jax.train.stopping import StopSignal
from mlagent_jax.types import to_json

# policy parameters -> records of the Figure-4 curve
Probe = Callable[[Params], list[dict[str, Any]]]


def run_ppo(
    config: RunConfig,
    workdir: Path,
    *,
    progress: Progress,
    score_trajectory: ScoreTrajectory,
    stop: StopSignal | None = None,
    editor: Policy | None = None,
) -> PpoState:
    """Trains the fine-tuned policy of a run in <workdir>/ppo.

    Called again after it was stopped at any moment, it ends with the same state, as
    long as scripts score the same when they run again and none was dropped for our
    own fault.

    Args:
      config: of the run.
      workdir: run directory with tasks/, trajectories/, sft/ and the tokenizer.
      progress: makes progress bars.
      score_trajectory: scores a probe's trajectory on the hidden test part; given
        by the caller so that nothing here can see such scores.
      stop: ends the stage early; None for never.
      editor: who edits files in profile `mlab`; None in `direct`.

    Raises:
      ConfigError: settings contradict each other or those of an earlier start.
      CheckpointError: the fine-tuned policy or a checkpoint is unusable.
      DataError: the trajectories are unusable.
      DivergedError: a loss or gradient is not finite.
      EnvUnavailableError: no action of an update could be executed.
      RunInterruptedError: `stop` was set; the state is saved.
    """
    _check_config(config)
    model_cfg = hf.model_of_run(config)
    check_stage(config, model_cfg, jax.device_count(), "ppo")
    graphdef = qwen2.make_graphdef(model_cfg)
    tokenizer_path = config.tokenizer.path or workdir / "tokenizer"
    tokenizer = Tokenizer.load(Path(tokenizer_path))
    tasks = load_tasks(config, workdir)
    held_in = {task_id: tasks[task_id] for task_id in config.held_in}
    store = SnapshotStore(workdir / "trajectories")
    experts = TrajectoryFile(workdir / "trajectories" / "expert.jsonl")
    states = OwnStates(
        StatePool([experts], held_in),
        held_in,
        workdir / "ppo" / "own_states.jsonl",
        config.ppo,
        config.env.max_steps,
    )
    # Handed on by `pop`: without a KL penalty nothing keeps it during the run.
    start = [load_sft_params(workdir, model_cfg, make_mesh(config.mesh))]
    replica = Replica(qwen2.abstract_params(model_cfg), model_cfg.compute_dtype)
    stop = stop or StopSignal()
    with ExitStack() as stack:
        workers: Pool = stack.enter_context(make_pool(tasks, store.root, config.env))
        if editor is not None:
            workers = EditingPool(workers, editor, store, config.env)
        policy = LocalPolicy(
            name="ppo",
            graphdef=graphdef,
            params=replica.copy(start[0]),
            tokenizer=tokenizer,
            cfg=config.sample,
            max_prompt_tokens=config.prompt.max_prompt_tokens,
            mesh=replica.mesh,
        )
        stack.callback(policy.close)
        policy.release()  # every rollout and probe brings its weights
        timeline = Timeline()

        def collect(
            update: int, params: Params, on_sampled: OnSampled | None
        ) -> Rollout:
            policy.set_params(replica.copy(params))

            def sampled(samples: Sequence[TokenSample | None]) -> None:
                policy.release()  # leaves the device's memory to the learner
                if on_sampled is not None:
                    on_sampled(samples)

            rollout = collect_rollout(
                update,
                config=config,
                policy=policy,
                workers=workers,
                states=states,
                tasks=held_in,
                store=store,
                stop=stop,
                timeline=timeline,
                on_sampled=sampled,
            )
            policy.release()  # if several hosts, or several steps, were sampled
            return rollout

        def probe(params: Params) -> list[dict[str, Any]]:
            policy.set_params(replica.copy(params))
            records = run_probe(
                config=config,
                policy=policy,
                workers=workers,
                tasks=tasks,
                store=store,
                score_trajectory=score_trajectory,
                stop=stop,
            )
            policy.release()
            return records

        return train_ppo(
            config,
            workdir / "ppo",
            graphdef=graphdef,
            model_cfg=model_cfg,
            take_policy=start.pop,
            collect=collect,
            probe=probe,
            progress=progress,
            timeline=timeline,
            own_states=states if config.ppo.pool.own_frac > 0 else None,
            stop=stop,
        )


def load_sft_params(workdir: Path, model_cfg: ModelConfig, mesh: Mesh) -> Params:
    """Returns the fine-tuned policy: the checkpoint of the lowest evaluation loss.

    Raises:
      CheckpointError: there is none, or it is of another shape.
    """
    return load_params(
        workdir / "sft" / "checkpoints",
        template=abstract_on_mesh(qwen2.abstract_params(model_cfg), mesh),
        best_metric="loss",
    )


def train_ppo(
    config: RunConfig,
    directory: Path,
    *,
    graphdef: Any,
    model_cfg: ModelConfig,
    take_policy: Callable[[], Params],
    collect: CollectRollout,
    probe: Probe,
    progress: Progress,
    own_states: OwnStates | None = None,
    stop: StopSignal | None = None,
    timeline: Timeline | None = None,
) -> PpoState:
    """Trains to the last update, from the newest checkpoint if there is one.

    Args:
      config: of the run; `ppo` gives the settings.
      directory: gets checkpoints/, metrics.jsonl, rollouts.jsonl and probes.jsonl.
      graphdef: of the model.
      model_cfg: its shape.
      take_policy: returns the policy to start from, called once; it stays as the
        frozen reference if there is a KL penalty.
      collect: samples one rollout; must depend on its arguments alone.
      probe: evaluates the policy before the first update, every `probe_every`
        updates and after the last.
      progress: makes progress bars.
      own_states: gets every rollout before the next one is collected.
      stop: ends the stage early; None for never.
      timeline: what `collect` records into; written beside the metrics.

    Raises:
      ConfigError: the directory holds checkpoints of other settings.
      CheckpointError: checkpoints are unusable, or one could not be written.
      DivergedError: a loss or gradient is not finite.
      RunInterruptedError: `stop` was set; the state is saved.
    """
    cfg, stop = config.ppo, stop or StopSignal()
    timeline = Timeline() if timeline is None else timeline
    sft_params = take_policy()
    learner = Learner(
        config,
        graphdef=graphdef,
        model_cfg=model_cfg,
        sft_params=sft_params,
        timeline=timeline,
    )
    identity = _identity(config, sft_params)
    with ExitStack() as stack:
        enter = stack.enter_context
        checkpoints = enter(
            Checkpoints(directory / "checkpoints", cfg.keep_checkpoints)
        )
        restored = checkpoints.restore_latest(learner.abstract_state)
        if restored is None:
            state, first, train_s = learner.init_state(sft_params), 0, 0.0
        else:
            first, state, meta = restored
            _check_identity(directory, first, meta["identity"], identity)
            train_s = meta["train_s"]
        del sft_params  # the learner has what it needs of it
        writer = enter(MetricsWriter(directory, first))
        rollouts = enter(UpdateLog(directory / "rollouts.jsonl", first))
        # The policy after `first` updates may have been probed already.
        probes = enter(UpdateLog(directory / "probes.jsonl", first + 1))
        source = enter(
            RolloutSource(collect, directory, is_ahead=cfg.max_staleness == 1)
        )
        if own_states is not None:
            own_states.open(first)
            stack.callback(own_states.close)
        bar = enter(progress(cfg.num_updates, "ppo", "update", first))
        for update in range(first, cfg.num_updates):
            meta = {"identity": identity, "train_s": train_s}
            try:
                if stop.is_set():
                    raise stop.error(f"ppo before update {update + 1}")
                _probe_if_due(cfg, update, probe, state, probes, train_s)
                start = monotonic()
                rollout = source.take(
                    update, state.actor.params, functools.partial(learner.begin, state)
                )
            except RunInterruptedError:
                source.save(checkpoints.steps())
                checkpoints.save(update, state, meta)
                checkpoints.wait()
                raise
            rollouts.append(update, rollout_records(rollout))
            if own_states is not None:
                own_states.add(rollout)
            if update + 1 < cfg.num_updates:
                source.begin(update + 1, state.actor.params)
            state, metrics = learner.update(state, rollout)
            source.wait()
            metrics["idle_frac"] = timeline.idle_frac(start, monotonic())
            train_s += monotonic() - start
            metrics |= rollout_metrics(rollout) | {"train_s": train_s}
            done = update + 1
            writer.write(done, metrics)
            _check_finite(metrics, done, checkpoints)
            if done % cfg.checkpoint_every == 0 or done == cfg.num_updates:
                meta = {"identity": identity, "train_s": train_s}
                source.save(checkpoints.steps())
                checkpoints.save(done, state, meta)
                if hosts.is_primary():
                    timeline.write(directory / "timeline.json")
            bar.update(1)
            bar.set_postfix_str(f"reward {metrics['reward_mean']:.3f}", refresh=False)
        checkpoints.wait()
        _probe_if_due(cfg, cfg.num_updates, probe, state, probes, train_s)
    return state


def _probe_if_due(
    cfg: PpoConfig,
    update: int,
    probe: Probe,
    state: PpoState,
    probes: UpdateLog,
    train_s: float,
) -> None:
    """Evaluates the policy after `update` updates unless that is on record."""
    is_due = cfg.probe_every > 0 and (
        update % cfg.probe_every == 0 or update == cfg.num_updates
    )
    if is_due and not probes.has(update):
        records = probe(state.actor.params)
        probes.append(update, [{"train_seconds": train_s, **r} for r in records])


def _check_config(config: RunConfig) -> None:
    """Refuses what would only show after the first rollout.

    Raises:
      ConfigError: replies may not fit, or the policy would be deterministic.
    """
    longest = config.prompt.max_prompt_tokens + config.sample.max_reply_tokens
    if config.ppo.seq_lens[-1] < longest:
        raise ConfigError(
            f"ppo.seq_lens = {config.ppo.seq_lens}: expected the last to be at least "
            f"prompt.max_prompt_tokens + sample.max_reply_tokens = {longest}"
        )
    if config.ppo.max_staleness > 0 and jax.process_count() > 1:
        raise ConfigError(
            "ppo.max_staleness = 1: expected 0 on several hosts, whose collective "
            "steps must not run in two orders at once"
        )
    if config.sample.temperature == 0:
        raise ConfigError("sample.temperature = 0.0: PPO needs a policy that explores")


def _check_finite(
    metrics: Mapping[str, float], done: int, checkpoints: Checkpoints
) -> None:
    """Refuses to go on with broken parameters.

    Raises:
      DivergedError: a metric is not finite.
    """
    bad = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if bad:
        raise DivergedError(
            f"ppo update {done}: not finite: {bad}; checkpoints of updates "
            f"{checkpoints.steps()} in {checkpoints.directory} are kept. Lower "
            "ppo.actor.peak_lr or ppo.critic.peak_lr"
        )


def _identity(config: RunConfig, sft_params: Params) -> dict[str, Any]:
    """Returns what must not change between the starts of one run."""
    free = {"checkpoint_every", "keep_checkpoints", "probe_every", "probe_trajectories"}
    ppo = {k: v for k, v in to_json(config.ppo).items() if k not in free}
    return {
        "seed": config.seed,
        "held_in": to_json(config.held_in),
        "prompt": to_json(config.prompt),
        "sample": to_json(config.sample),
        "ppo": ppo,
        "sft_weights": fingerprint(sft_params),
    }


def _check_identity(
    directory: Path, step: int, saved: Mapping[str, Any], ours: Mapping[str, Any]
) -> None:
    """Refuses to go on with other settings.

    Raises:
      ConfigError: a setting has changed.
    """
    changed = sorted(k for k in saved.keys() | ours if saved.get(k) != ours.get(k))
    if changed:
        lines = [f"  {k}: {saved.get(k)} -> {ours.get(k)}" for k in changed]
        raise ConfigError(
            f"{directory} was trained to update {step} with other settings:\n"
            + "\n".join(lines)
            + "\nremove that folder to train anew, or use another --workdir"
        )
