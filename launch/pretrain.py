"""Tokenizer and copying practice: `python -m launch.pretrain --config=...`.

Reads <workdir>/{tasks,trajectories}, writes <workdir>/{tokenizer,pretrain}; the same
command continues a run that was stopped. Only for runs without pretrained weights.
"""

from launch import common, device_setup
from mlagent_jax.train.pretrain import run_pretrain
from mlagent_jax.train.stopping import StopSignal


def main(run: common.Run, stop: StopSignal) -> None:
    """Trains to the last update of the config."""
    device_setup.use_compilation_cache()
    accuracy = run_pretrain(
        run.config, run.workdir, progress=common.progress, stop=stop
    )
    print(f"copy accuracy on unseen random strings: {accuracy:.1%}")


if __name__ == "__main__":
    common.run_device_stage(main)
