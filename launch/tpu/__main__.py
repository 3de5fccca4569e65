r"""Runs a stage on a TPU slice: `python -m launch.tpu COMMAND --flags -- STAGE FLAGS`.

    python -m launch.tpu run --name=sft-7b --tpu=v5p:2x2x2 --spot \
        --bucket=gs://mine/mlagent --project=mine --zone=us-east5-a \
        sft -- --config=configs/qwen2_5_7b_sft.py

Commands: `run` (get a slice, ship the code, run to the end, resume after preemption),
`create`, `start`, `status`, `logs`, `delete`. `--on=gke` does the same by a JobSet;
`run` then hands it to the cluster and returns. `--dry_run` prints what would be run
and needs no cloud tools.
"""

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from launch import exits
from launch.tpu import gke, vm
from launch.tpu.loop import run_until_done
from launch.tpu.settings import PodSettings
from mlagent_jax.errors import ConfigError, MlAgentError

_NAME = flags.DEFINE_string("name", "", "Of the slice and the run directory.")
_TPU = flags.DEFINE_string("tpu", "v5p:2x2x2", "Generation and topology.")
_BUCKET = flags.DEFINE_string("bucket", "", "gs://bucket/folder for runs and code.")
_PROJECT = flags.DEFINE_string("project", "", "Google Cloud project.")
_ZONE = flags.DEFINE_string("zone", "", "Zone of the slice.")
_SPOT = flags.DEFINE_bool("spot", False, "Cheaper, may be taken away; resumes.")
_ON = flags.DEFINE_enum("on", "vm", ["vm", "gke"], "Cloud TPU VMs or GKE.")
_IMAGE = flags.DEFINE_string("image", "", "For GKE: container with this project.")
_RESTARTS = flags.DEFINE_integer("max_restarts", 100, "Starts after the first.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be run.")

COMMANDS = ("run", "create", "start", "status", "logs", "delete")


def commands(pod: PodSettings, command: str, on: str, scratch: Path) -> list[list[str]]:
    """Returns what `command` runs on this machine, in order, if nothing goes wrong.

    Args:
      pod: what to run where.
      command: one of `COMMANDS`.
      on: "vm" or "gke".
      scratch: folder for files that the commands need.

    Raises:
      ConfigError: there is no such command.
    """
    archive, manifest = scratch / "code.tar.gz", scratch / "jobset.json"
    if on == "gke":
        table = {
            "run": [gke.apply(str(manifest))],
            "status": [gke.state(pod)],
            "logs": [gke.logs(pod)],
            "delete": [gke.delete(pod)],
        }
    else:
        start = [*vm.ship(pod, archive), vm.start(pod)]
        table = {
            "run": [vm.create(pod), vm.state(pod), *start],
            "create": [vm.create(pod)],
            "start": start,
            "status": [vm.state(pod)],
            "logs": [vm.logs(pod)],
            "delete": [vm.delete(pod)],
        }
    if command not in table:
        raise ConfigError(f"{command!r} on {on}: expected one of {', '.join(table)}")
    return table[command]


def execute(command: Sequence[str], is_wanted: bool) -> tuple[int, str]:
    """Runs a command; see `loop.Execute`.

    Raises:
      ConfigError: its program is not installed.
    """
    print(shlex.join(command), file=sys.stderr, flush=True)
    output = subprocess.PIPE if is_wanted else None
    try:
        result = subprocess.run(command, stdout=output, text=True, check=False)
    except FileNotFoundError as error:
        raise ConfigError(f"{command[0]} is not installed on this machine") from error
    return result.returncode, result.stdout or ""


def run(pod: PodSettings, command: str, on: str, is_dry: bool) -> None:
    """Does what the flags ask for.

    Raises:
      ConfigError: a flag is wrong.
      MlAgentError: a command failed.
    """
    with tempfile.TemporaryDirectory(prefix="mlagent-") as folder:
        scratch = Path("SCRATCH" if is_dry else folder)
        todo = commands(pod, command, on, scratch)
        is_jobset = on == "gke" and command == "run"
        manifest = json.dumps(gke.manifest(pod), indent=2) if is_jobset else ""
        if is_dry:
            for line in todo:
                print(shlex.join(line))
            if manifest:
                print(manifest)
            return
        if manifest:
            (scratch / "jobset.json").write_text(manifest + "\n")
        if (on, command) == ("vm", "run"):
            run_until_done(pod, scratch / "code.tar.gz", execute)
            return
        for line in todo:
            status, _ = execute(line, False)
            if status != 0:
                exits.fail(f"exit status {status} of: {shlex.join(line)}", status)


def main(argv: list[str]) -> None:
    """Reads the flags; a deliberate error is one message."""
    if len(argv) < 3 or argv[1] not in COMMANDS:
        exits.fail(f"expected one of {', '.join(COMMANDS)}, then a stage and its flags")
    try:
        pod = PodSettings(
            name=_NAME.value,
            stage=argv[2],
            arguments=tuple(argv[3:]),
            tpu=_TPU.value,
            bucket=_BUCKET.value,
            project=_PROJECT.value,
            zone=_ZONE.value,
            spot=_SPOT.value,
            image=_IMAGE.value,
            max_restarts=_RESTARTS.value,
        )
        run(pod, argv[1], _ON.value, _DRY_RUN.value)
    except MlAgentError as error:
        exits.fail(str(error))


if __name__ == "__main__":
    app.run(main)
