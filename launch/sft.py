"""Supervised fine-tuning on the expert: `python -m launch.sft --config=...`.

Reads <workdir>/{tasks,trajectories,tokenizer,pretrain}, writes <workdir>/sft; the
same command continues a run that was stopped.
"""

from launch import common, device_setup
from mlagent_jax.train.sft import run_sft
from mlagent_jax.train.stopping import StopSignal


def main(run: common.Run, stop: StopSignal) -> None:
    """Trains to the last update of the config."""
    device_setup.use_compilation_cache()
    run_sft(run.config, run.workdir, progress=common.progress, stop=stop)


if __name__ == "__main__":
    common.run_device_stage(main)
