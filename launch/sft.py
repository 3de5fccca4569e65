"""Supervised fine-tuning on the expert: `python -m launch.sft --config=...`.

Reads <workdir>/{tasks,trajectories,tokenizer,pretrain}, writes <workdir>/sft; the
same command continues a run that was stopped.
"""

from launch import common
from mlagent_jax.train.sft import run_sft


def main(run: common.Run) -> None:
    """Trains to the last update of the config."""
    common.use_compilation_cache()
    run_sft(run.config, run.workdir, progress=common.progress)


if __name__ == "__main__":
    common.run_stage(main)
