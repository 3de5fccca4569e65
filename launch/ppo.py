"""Step-wise PPO on the fine-tuned policy: `python -m launch.ppo --config=...`.

Reads <workdir>/{tasks,trajectories,tokenizer,sft}, writes <workdir>/ppo; the same
command continues a run that was stopped.
"""

from launch import common, device_setup
from launch.policies import make_editor
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.evaluation.records import score_trajectory
from mlagent_jax.rl.loop import run_ppo
from mlagent_jax.rl.probe import ProbeScore
from mlagent_jax.train.stopping import StopSignal
from mlagent_jax.types import Task, Trajectory


def main(run: common.Run, stop: StopSignal) -> None:
    """Trains to the last update of the config."""
    device_setup.use_compilation_cache()
    editor = make_editor(run) if run.config.env.profile == "mlab" else None
    try:
        run_ppo(
            run.config,
            run.workdir,
            progress=common.progress,
            score_trajectory=_score_on_test_part,
            stop=stop,
            editor=editor,
        )
    finally:
        if editor is not None:
            editor.close()


def _score_on_test_part(
    trajectory: Trajectory, task: Task, store: SnapshotStore
) -> ProbeScore:
    record = score_trajectory(trajectory, task, store, step_rewards=())
    return ProbeScore(
        score=record.final_score, relative_gain_percent=record.relative_gain_percent
    )


if __name__ == "__main__":
    common.run_device_stage(main)
