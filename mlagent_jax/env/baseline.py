"""The measured baseline of a task's real data, stored beside the data.

Of data that a task makes itself, task.toml holds the baseline; real data is not ours to
publish, so its baseline is measured where it is imported, and belongs to the starter it
was measured with.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mlagent_jax.errors import TaskError

BASELINE_FILE: Final = "baseline.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baseline:
    """What the starter scores on prepared real data.

    Attributes:
      baseline: mean of both hidden parts' scores.
      seed_mean: mean of `baseline` over seeds of the starter's own randomness.
      seed_std: standard deviation over these seeds, 0.0 for one seed.
      num_seeds: how many there were.
      stderr: larger bootstrap standard error of both parts.
      wall_s: median wall-clock seconds of a run.
      hardware: machine and number of cores.
      starter_hash: of the starter that was measured.
    """

    baseline: float
    seed_mean: float
    seed_std: float
    num_seeds: int
    stderr: float
    wall_s: float
    hardware: str
    starter_hash: str


def hash_starter(starter: Mapping[str, str]) -> str:
    """Returns a hash of the starter's files."""
    return hashlib.sha256(json.dumps(sorted(starter.items())).encode()).hexdigest()


def write_baseline(prepared: Path, baseline: Baseline) -> None:
    """Stores a baseline beside the prepared data."""
    partial = prepared / f".{BASELINE_FILE}.partial"
    partial.write_text(json.dumps(dataclasses.asdict(baseline), indent=1) + "\n")
    os.replace(partial, prepared / BASELINE_FILE)


def read_baseline(prepared: Path, starter: Mapping[str, str]) -> Baseline | None:
    """Returns the baseline of `starter`; None if it was not measured.

    Raises:
      TaskError: the file is damaged.
    """
    path = prepared / BASELINE_FILE
    if not path.is_file():
        return None
    try:
        baseline = Baseline(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise TaskError(f"{path} is damaged ({error}); remove it") from error
    return baseline if baseline.starter_hash == hash_starter(starter) else None
