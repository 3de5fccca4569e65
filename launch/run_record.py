"""The run directory: who holds it, which run it belongs to, and its record run.json."""

import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlagent_jax.config import RunConfig
from mlagent_jax.errors import ConfigError
from mlagent_jax.types import to_json

_LOCK_TRIES = 10  # seconds, for a killed predecessor to be gone

# A run directory belongs to one value of these: later stages read what earlier
# ones wrote under them. Other fields may change between stages of one run.
_IDENTITY_FIELDS = (
    "seed",
    "task_root",
    "real_data",
    "held_in",
    "init",
    "model",
    "tokenizer",
)
_VERSIONED_PACKAGES = (
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "transformers",
    "scikit-learn",
    "numpy",
    "pandas",
)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON so that a reader never sees half a file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(to_json(value), indent=1) + "\n")
    os.replace(partial, path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the run directory; a second stage in it would mix up its files.

    Raises:
      ConfigError: another process holds it.
    """
    with path.open("w") as file:
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(1.0)
        else:
            raise ConfigError(
                f"{path.parent} is in use by another process; wait for it, or give "
                "another --workdir"
            )
        yield


def check_identity(config: RunConfig, path: Path) -> None:
    """Refuses a directory whose record `path` is of a run with other settings.

    Raises:
      ConfigError: it is, or the record is damaged.
    """
    if not path.is_file():
        return
    try:
        recorded = json.loads(path.read_text())["config"]
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{path} is damaged ({error}); move it away") from error
    ours = to_json(config)
    changed = [f for f in _IDENTITY_FIELDS if recorded.get(f) != ours[f]]
    if changed:
        lines = [f"  {f}: {recorded.get(f)} -> {ours[f]}" for f in changed]
        raise ConfigError(
            f"{path.parent} belongs to a run with other settings; use another "
            "--workdir:\n" + "\n".join(lines)
        )


def make_record(config: RunConfig) -> dict[str, Any]:
    """Returns what run.json says about a run: its config, and what made it."""
    return {
        "config": config,
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": versions(),
        "commit": _git_commit(),
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count()},
    }


def versions() -> dict[str, str]:
    """Returns the versions of the packages that results depend on."""
    return {name: importlib.metadata.version(name) for name in _VERSIONED_PACKAGES}


def _git_commit() -> str | None:
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
