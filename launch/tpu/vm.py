"""The commands that run a stage on a Cloud TPU VM slice; nothing is executed here.

Code goes to the bucket and from there to every worker; the run directory is the
bucket itself, mounted on every worker by gcsfuse, so that logs, metrics and
checkpoints outlive a slice that is taken away.
"""

import shlex
from pathlib import Path

from launch.tpu.settings import HOST_STAGES, PodSettings

_SCRIPT = Path(__file__).with_name("worker.sh")
# On a worker, relative to the home folder of its user.
_CODE_DIR = "mlagent_code"
_BUCKET_DIR = "mlagent_bucket"


def create(pod: PodSettings) -> list[str]:
    """Returns the command that asks for the slice."""
    command = [
        *_queued_resources("create", pod),
        f"--node-id={pod.name}",
        f"--accelerator-type={pod.accelerator_type()}",
        f"--runtime-version={pod.generation().runtime}",
    ]
    return [*command, "--spot"] if pod.spot else command


def state(pod: PodSettings) -> list[str]:
    """Returns the command that prints the state of the slice, e.g. ACTIVE."""
    return [*_queued_resources("describe", pod), "--format=value(state.state)"]


def delete(pod: PodSettings) -> list[str]:
    """Returns the command that gives the slice back, whatever its state."""
    return [*_queued_resources("delete", pod), "--force", "--quiet"]


def ship(pod: PodSettings, archive: Path) -> list[list[str]]:
    """Returns the commands that pack the committed code and copy it to the bucket."""
    return [
        ["git", "archive", "--format=tar.gz", f"--output={archive}", "HEAD"],
        ["gcloud", "storage", "cp", str(archive), _code_url(pod)],
        ["gcloud", "storage", "cp", str(_SCRIPT), _script_url(pod)],
    ]


def start(pod: PodSettings) -> list[str]:
    """Returns the command that runs the stage on the workers and waits for it."""
    worker = "0" if pod.stage in HOST_STAGES else "all"
    return [
        *("gcloud", "compute", "tpus", "tpu-vm", "ssh", pod.name),
        *_place(pod),
        f"--worker={worker}",
        f"--command={remote_command(pod)}",
    ]


def remote_command(pod: PodSettings) -> str:
    """Returns the line that a worker's shell runs."""
    fetch = ["gcloud", "storage", "cp", _script_url(pod), "worker.sh"]
    workdir = f"../{_BUCKET_DIR}/runs/{pod.name}"
    run = [
        *("bash", "worker.sh", pod.bucket_name(), pod.bucket_folder(), pod.name),
        *(_code_url(pod), _CODE_DIR, _BUCKET_DIR),
        *pod.stage_command(workdir),
    ]
    return f"{shlex.join(fetch)} && {shlex.join(run)}"


def logs(pod: PodSettings) -> list[str]:
    """Returns the command that prints the end of every worker's log."""
    return ["gcloud", "storage", "cat", f"{_run_url(pod)}/logs/*.log", "--range=-4000"]


def statuses(pod: PodSettings) -> list[str]:
    """Returns the command that prints the exit status of every worker that ended."""
    return ["gcloud", "storage", "cat", f"{_run_url(pod)}/logs/*.status"]


def _queued_resources(verb: str, pod: PodSettings) -> list[str]:
    command = ["gcloud", "compute", "tpus", "queued-resources", verb, pod.name]
    return [*command, *_place(pod)]


def _place(pod: PodSettings) -> tuple[str, str]:
    return f"--project={pod.project}", f"--zone={pod.zone}"


def _run_url(pod: PodSettings) -> str:
    return f"{pod.bucket.rstrip('/')}/runs/{pod.name}"


def _code_url(pod: PodSettings) -> str:
    return f"{pod.bucket.rstrip('/')}/code/{pod.name}.tar.gz"


def _script_url(pod: PodSettings) -> str:
    return f"{pod.bucket.rstrip('/')}/code/{pod.name}.worker.sh"
