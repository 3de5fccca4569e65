"""What the pod launcher would run: complete, quoted, and right after preemption."""

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from launch.tpu import gke, vm
from launch.tpu.__main__ import COMMANDS, commands
from launch.tpu.loop import StageFailedError, run_until_done
from launch.tpu.settings import GENERATIONS, PodSettings
from mlagent_jax.errors import ConfigError, RunInterruptedError

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads(Path(__file__).with_name("jobset_schema.json").read_text())
ODD = (
    "--config=my configs/it's.py",
    "--set",
    'sft.optimizer.peak_lr="$(rm -rf ~)"; `reboot` && *',
)
POD = PodSettings(
    name="sft-7b",
    stage="sft",
    arguments=ODD,
    tpu="v5p:2x2x2",
    bucket="gs://mine/some/folder",
    project="proj",
    zone="us-east5-a",
    spot=True,
    image="repo/image:1",
    max_restarts=3,
)


def replace(**changes) -> PodSettings:
    return dataclasses.replace(POD, **changes)


@pytest.mark.parametrize(
    ("tpu", "accelerator_type", "hosts"),
    [
        ("v4:2x2x2", "v4-16", 2),
        ("v5p:2x2x1", "v5p-8", 1),
        ("v5p:2x2x2", "v5p-16", 2),
        ("v5e:4x8", "v5litepod-32", 8),
        ("v6e:4x4", "v6e-16", 4),
        ("v6e:1x1", "v6e-1", 1),
    ],
)
def test_a_topology_is_named_as_the_cloud_does(tpu, accelerator_type, hosts):
    pod = replace(tpu=tpu)
    assert pod.accelerator_type() == accelerator_type
    assert pod.num_hosts() == hosts
    assert replace(tpu=tpu, stage="prepare").num_hosts() == 1
    assert "--coordinator=auto" in pod.stage_command("w")
    assert "--coordinator=auto" not in replace(stage="prepare").stage_command("w")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "My Run"}, "--name=My Run: expected lower-case"),
        ({"stage": "train"}, "--stage=train: expected one of prepare"),
        ({"tpu": "v9:2x2"}, "--tpu=v9:2x2: .*expected one of v4, v5e, v5p, v6e"),
        ({"tpu": "v5p"}, "--tpu=v5p: .*expected 3 sizes"),
        ({"tpu": "h100:8"}, "--tpu=h100:8: expected one of v4, v5e, v5p, v6e"),
        ({"bucket": "/tmp"}, "--bucket=/tmp: expected gs://"),
        ({"zone": ""}, "--zone=: expected"),
        ({"stage": "evaluate"}, "has 2 hosts: evaluate runs on one; .* 4 chips"),
        ({"max_restarts": -1}, "--max_restarts=-1: expected >= 0"),
    ],
)
def test_wrong_settings_are_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(**changes)


def test_every_worker_gets_the_very_arguments_whatever_is_in_them(tmp_path):
    """Runs the remote line in a real shell, with fakes for gcloud and the script."""
    (tmp_path / "worker.sh").write_text('printf "%s\\0" "$@" >out\n')
    fake = tmp_path / "gcloud"
    fake.write_text("#!/bin/sh\nexit 0\n")
    fake.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-c", vm.remote_command(POD)],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        check=True,
    )
    found = (tmp_path / "out").read_text().split("\0")[:-1]
    assert found[:3] == ["mine", "some/folder", "sft-7b"]
    assert found[6:] == [
        *("python", "-m", "launch.sft"),
        "--workdir=../mlagent_bucket/runs/sft-7b",
        "--coordinator=auto",
        *ODD,
    ]


@pytest.mark.parametrize("on", ["vm", "gke"])
def test_a_dry_run_prints_every_command_so_that_a_shell_reads_it_back(on):
    result = subprocess.run(
        [
            *(sys.executable, "-m", "launch.tpu", "run", "--dry_run", f"--on={on}"),
            *("--name=sft-7b", "--bucket=gs://mine/some/folder", "--project=proj"),
            *("--zone=us-east5-a", "--spot", "--image=repo/image:1"),
            *("--max_restarts=3", "sft", "--", *ODD),
        ],
        cwd=ROOT,
        env=os.environ | {"PATH": ""},  # no cloud tools
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = commands(POD, "run", on, Path("SCRATCH"))
    printed = result.stdout.splitlines()
    assert [shlex.split(line) for line in printed[: len(lines)]] == lines
    if on == "gke":
        rest = "\n".join(printed[len(lines) :])
        assert json.loads(rest) == gke.manifest(POD)


@pytest.mark.parametrize("command", COMMANDS)
def test_vm_commands_name_slice_project_and_zone(command):
    for line in commands(POD, command, "vm", Path("x")):
        if line[:3] == ["gcloud", "compute", "tpus"]:
            assert {"sft-7b", "--project=proj", "--zone=us-east5-a"} <= set(line)
    create = vm.create(POD)
    assert "--accelerator-type=v5p-16" in create
    assert "--spot" in create
    assert "--spot" not in vm.create(replace(spot=False))
    assert "--worker=all" in vm.start(POD)
    assert "--worker=0" in vm.start(replace(stage="prepare"))


def test_commands_that_a_cluster_does_itself_are_refused():
    with pytest.raises(ConfigError, match="'create' on gke: expected one of run, stat"):
        commands(POD, "create", "gke", Path("x"))


@pytest.mark.parametrize("stage", ["prepare", "sft"])
@pytest.mark.parametrize("tpu", ["v5p:2x2x2", "v6e:4x4", "v6e:1x1"])
@pytest.mark.parametrize("bucket", ["gs://mine", "gs://mine/some/folder/"])
def test_the_manifest_fits_the_schema(stage, tpu, bucket):
    pod = replace(stage=stage, tpu=tpu, bucket=bucket)
    manifest = gke.manifest(pod)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(manifest, SCHEMA)
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == pod.num_hosts()
    container = job["template"]["spec"]["containers"][0]
    assert tuple(container["command"][-len(ODD) :]) == ODD
    selector = job["template"]["spec"]["nodeSelector"]
    is_device = stage == "sft"
    assert ("google.com/tpu" in str(container)) == is_device
    assert ("cloud.google.com/gke-tpu-topology" in selector) == is_device


def test_the_schema_refuses_what_the_cluster_would():
    manifest = gke.manifest(POD)
    manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["completion"] = 1
    with pytest.raises(jsonschema.ValidationError, match="'completion' was unexpected"):
        jsonschema.validate(manifest, SCHEMA)
    with pytest.raises(ConfigError, match="--image"):
        gke.manifest(replace(image=""))


def test_every_generation_has_all_facts():
    for generation in GENERATIONS.values():
        assert all(dataclasses.astuple(generation))


class Cloud:
    """Plays gcloud: a list of states that `describe` prints, of run statuses."""

    def __init__(self, states, runs) -> None:
        self.states, self.runs = list(states), list(runs)
        self.log: list[str] = []

    def __call__(self, command, is_wanted):
        text = " ".join(command)
        if "describe" in command:
            state = self.states.pop(0)
            return (1, "") if state is None else (0, f"{state}\n")
        if "ssh" in command:
            self.log.append("start")
            status, self.left = self.runs.pop(0)
            return status, ""
        if ".status" in text:
            return 0, self.left
        self.log.append(
            next(v for v in ("create", "delete", "cp", "archive") if v in command)
        )
        return 0, ""


def test_a_slice_that_is_taken_away_is_replaced_and_the_stage_continues():
    cloud = Cloud(
        states=[
            *(None, "PROVISIONING", "ACTIVE"),  # first start, ended by preemption
            *("SUSPENDED", None, "WAITING_FOR_RESOURCES", "ACTIVE"),
            "ACTIVE",  # a host failed, the slice is still there
        ],
        runs=[(1, ""), (255, "75\n75\n"), (0, "0\n0\n")],
    )
    run_until_done(POD, Path("x"), cloud, sleep=lambda s: None)
    assert cloud.log[:3] == ["archive", "cp", "cp"]
    assert cloud.log[3:] == ["create", "start", "delete", "create", "start", "start"]


def test_a_stage_that_fails_by_itself_is_not_started_again():
    cloud = Cloud(states=["ACTIVE"], runs=[(1, "75\n2\n")])
    with pytest.raises(StageFailedError, match="sft failed on sft-7b .*'2'"):
        run_until_done(POD, Path("x"), cloud, sleep=lambda s: None)
    assert cloud.log.count("start") == 1


def test_restarts_are_limited():
    cloud = Cloud(states=["ACTIVE"] * 9, runs=[(1, "75\n")] * 9)
    with pytest.raises(RunInterruptedError, match="interrupted 4 times"):
        run_until_done(POD, Path("x"), cloud, sleep=lambda s: None)
    assert cloud.log.count("start") == 4


def test_shell_scripts_pass_shellcheck():
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    shellcheck = shellcheck or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (extra dev)")
    listed = subprocess.run(
        ["git", "ls-files", "*.sh"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    scripts = listed.stdout.split() or ["launch/tpu/worker.sh"]
    assert "launch/tpu/worker.sh" in scripts
    subprocess.run([shellcheck, *scripts], cwd=ROOT, check=True)
