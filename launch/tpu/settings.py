"""What a pod run needs to know, and the facts about TPU generations behind it."""

import dataclasses
import math
import re

from mlagent_jax.errors import ConfigError
from mlagent_jax.parallel.topology import parse_slice

# Stages that run on every host of a slice.
DEVICE_STAGES = ("pretrain", "sft", "ppo", "measure")
# Uses TPUs, but of one host.
ONE_HOST_STAGES = ("evaluate",)
# Need one host and no TPU.
HOST_STAGES = ("prepare", "collect", "report")

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_BUCKET = re.compile(r"gs://(?P<bucket>[a-z0-9][a-z0-9._-]+)(/(?P<folder>.+?))?/?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """A kind of TPU, as the documentation of Cloud TPU and GKE has it.

    Attributes:
      type_prefix: of the accelerator type of a TPU VM.
      cores_per_chip: what the number in that type counts for each chip.
      runtime: software version of a TPU VM.
      gke_accelerator: value of the node label.
      chips_per_host: of a slice of several hosts.
    """

    type_prefix: str
    cores_per_chip: int
    runtime: str
    gke_accelerator: str
    chips_per_host: int = 4


GENERATIONS = {
    "v4": Generation(
        type_prefix="v4",
        cores_per_chip=2,
        runtime="tpu-ubuntu2204-base",
        gke_accelerator="tpu-v4-podslice",
    ),
    "v5e": Generation(
        type_prefix="v5litepod",
        cores_per_chip=1,
        runtime="v2-alpha-tpuv5-lite",
        gke_accelerator="tpu-v5-lite-podslice",
    ),
    "v5p": Generation(
        type_prefix="v5p",
        cores_per_chip=2,
        runtime="v2-alpha-tpuv5",
        gke_accelerator="tpu-v5p-slice",
    ),
    "v6e": Generation(
        type_prefix="v6e",
        cores_per_chip=1,
        runtime="v2-alpha-tpuv6e",
        gke_accelerator="tpu-v6e-slice",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PodSettings:
    """One stage on one TPU slice.

    Attributes:
      name: of the slice, the job and the run directory; lower case, digits, dashes.
      stage: of launch/, e.g. "sft".
      arguments: of the stage, e.g. ("--config=configs/qwen2_5_7b_sft.py",).
      tpu: generation and topology, as for launch.aot: "v5p:2x2x2".
      bucket: "gs://bucket/folder"; run directories, logs and code live there.
      project: of Google Cloud.
      zone: of the slice.
      spot: a cheaper slice that may be taken away; the run resumes by itself.
      image: for GKE: container with this project installed in its working folder.
      max_restarts: starts after the first before giving up.
    """

    name: str
    stage: str
    arguments: tuple[str, ...]
    tpu: str
    bucket: str
    project: str
    zone: str
    spot: bool = False
    image: str = ""
    max_restarts: int = 100

    def __post_init__(self) -> None:
        stages = (*HOST_STAGES, *DEVICE_STAGES, *ONE_HOST_STAGES)
        checks = (
            (_NAME.fullmatch(self.name), "name", "lower-case letters, digits, dashes"),
            (self.stage in stages, "stage", f"one of {', '.join(stages)}"),
            (_BUCKET.fullmatch(self.bucket), "bucket", "gs://bucket/folder"),
            (self.project, "project", "a Google Cloud project"),
            (self.zone, "zone", "a zone such as us-east5-a"),
            (self.max_restarts >= 0, "max_restarts", ">= 0"),
        )
        for is_ok, field, expected in checks:
            if not is_ok:
                value = getattr(self, field)
                raise ConfigError(f"--{field}={value}: expected {expected}")
        self.topology()
        if self.stage in ONE_HOST_STAGES and self.num_hosts() > 1:
            raise ConfigError(
                f"--tpu={self.tpu} has {self.num_hosts()} hosts: {self.stage} runs on "
                f"one; expected at most {self.generation().chips_per_host} chips"
            )

    def topology(self) -> tuple[int, ...]:
        """Returns the chips along each axis of the slice.

        Raises:
          ConfigError: `tpu` is not a generation and a topology.
        """
        if self.tpu.partition(":")[0] not in GENERATIONS:
            expected = ", ".join(GENERATIONS)
            raise ConfigError(f"--tpu={self.tpu}: expected one of {expected}")
        try:
            return parse_slice(self.tpu).shape
        except ConfigError as error:
            raise ConfigError(f"--tpu={self.tpu}: {error}") from error

    def generation(self) -> Generation:
        """Returns the facts about this kind of TPU."""
        return GENERATIONS[self.tpu.partition(":")[0]]

    def num_chips(self) -> int:
        """Returns the chips of the slice."""
        return math.prod(self.topology())

    def num_hosts(self) -> int:
        """Returns how many hosts run the stage."""
        if self.stage in HOST_STAGES:
            return 1
        return max(1, self.num_chips() // self.generation().chips_per_host)

    def accelerator_type(self) -> str:
        """Returns the name of a TPU VM of this size, e.g. "v5p-16" for 8 chips."""
        generation = self.generation()
        return (
            f"{generation.type_prefix}-{self.num_chips() * generation.cores_per_chip}"
        )

    def bucket_name(self) -> str:
        """Returns the bucket without its folder."""
        return self.bucket.removeprefix("gs://").partition("/")[0]

    def bucket_folder(self) -> str:
        """Returns the folder in the bucket, "" for all of it."""
        return self.bucket.removeprefix("gs://").partition("/")[2].rstrip("/")

    def stage_command(self, workdir: str) -> list[str]:
        """Returns what every host of the stage runs.

        Args:
          workdir: run directory, the same files on all hosts.
        """
        command = ["python", "-m", f"launch.{self.stage}", f"--workdir={workdir}"]
        if self.stage in DEVICE_STAGES:
            command.append("--coordinator=auto")
        return [*command, *self.arguments]
