"""Writes the report of a run: `python -m launch.report --workdir=... [--paper]`.

Reads what earlier stages recorded and writes <workdir>/report (or --out): index.html
(opens offline), summary.json, tables and figures; ends by printing the short table.
With --paper, the published Table 1 and Figures 3 and 4 stand beside what was measured.
The configuration is the recorded one unless --config names another.
"""

from pathlib import Path

from absl import flags

from launch import common
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.task import load_tasks
from mlagent_jax.evaluation import tables
from mlagent_jax.evaluation.report import count_trajectories, write_report

_PAPER = flags.DEFINE_bool("paper", False, "Set the published results beside ours.")
_ABLATION = flags.DEFINE_string(
    "ablation", None, "Tables of launch.ablate; default <workdir>/ablation."
)
_OUT = flags.DEFINE_string("out", None, "Folder to write; default <workdir>/report.")


def main(run: common.Run) -> None:
    """Writes the report and prints the results."""
    config, workdir = run.config, run.workdir
    out = Path(_OUT.value).resolve() if _OUT.value else workdir / "report"
    total = count_trajectories(workdir, config.eval.policies)
    with common.progress(total, "report", "trajectory") as bar:
        summary = write_report(
            config,
            workdir,
            out,
            tasks=load_tasks(config, workdir),
            store=SnapshotStore(workdir / "trajectories"),
            on_trajectory=bar.update,
            with_paper=_PAPER.value,
            ablation_dir=Path(_ABLATION.value) if _ABLATION.value else None,
        )
    for table in (tables.overview_table(summary), tables.fresh_table(summary)):
        print("\n" + tables.to_text(table))
    print(f"\nisolation: {summary['isolation']}")
    print(f"report:    {out / 'index.html'}")


if __name__ == "__main__":
    common.run_stage(main, config_of_run=True)
