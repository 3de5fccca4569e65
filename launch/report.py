"""Writes the report of a run: `python -m launch.report --config=... --workdir=...`.

Reads what earlier stages recorded and writes report/: index.html (opens offline),
summary.json, tables and figures; ends by printing the short table.
"""

from launch import common
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.task import load_tasks
from mlagent_jax.evaluation import tables
from mlagent_jax.evaluation.report import count_pages, write_report


def main(run: common.Run) -> None:
    """Writes the report and prints the results."""
    config, workdir = run.config, run.workdir
    out = workdir / "report"
    num_pages = count_pages(workdir, config.eval.policies)
    with common.progress(num_pages, "report", "page") as bar:
        summary = write_report(
            config,
            workdir,
            out,
            tasks=load_tasks(config, workdir),
            store=SnapshotStore(workdir / "trajectories"),
            on_page=bar.update,
        )
    for table in (tables.overview_table(summary), tables.fresh_table(summary)):
        print("\n" + tables.to_text(table))
    print(f"\nisolation: {summary['isolation']}")
    print(f"report:    {out / 'index.html'}")


if __name__ == "__main__":
    common.run_stage(main)
