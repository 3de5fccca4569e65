"""What every stage program shares: flags, opening the run, errors, progress.

Three flags are the whole command line of a stage: `--config` (a file with
`get_config()`), `--workdir` and `--set section.field=value`. Stages that use devices
also run on several hosts, where every host starts the same command; `--coordinator`
then says how they find each other. jax is imported only for device stages.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags
from absl import logging as absl_logging
from tqdm import tqdm

from launch import run_record
from launch.device_setup import joined_hosts, keep_freed_memory
from launch.exits import RESTART_STATUS, die_with_parent, fail
from mlagent_jax import config as config_lib
from mlagent_jax.config import Grid, RunConfig
from mlagent_jax.errors import ConfigError, MlAgentError, RunInterruptedError
from mlagent_jax.types import from_json, to_json

if TYPE_CHECKING:
    from mlagent_jax.train.stopping import StopSignal

_CONFIG = flags.DEFINE_string(
    "config", None, "Python file with get_config(), e.g. configs/quickstart.py."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Run directory; default runs/<config.name>. Same one = resume."
)
_SET = flags.DEFINE_multi_string(
    "set", [], "Override one field: --set ppo.num_updates=10. May be repeated."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "For a run on several hosts: host:port of the first one, or `auto` where jax finds "
    "the others itself (Cloud TPU, GKE, Slurm).",
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Hosts of the run; not with --coordinator=auto."
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Number of this host, from 0; not with --coordinator=auto."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A stage's view of its run.

    Attributes:
      config: the run's configuration with overrides applied.
      workdir: run directory, created.
    """

    config: RunConfig
    workdir: Path


def run_stage(
    main: Callable[[Run], None], lock: str = "stage", config_of_run: bool = False
) -> None:
    """Parses flags, opens the run directory and calls `main` on this host alone.

    With `config_of_run`, the configuration recorded in the run directory stands in
    for a missing --config.

    Programs with the same `lock` exclude each other in one run directory.

    A deliberate error ends the program with its message and exit status 2, or 75 if
    the same command continues; any other exception is a bug and keeps its traceback.
    """

    def start() -> None:
        if _COORDINATOR.value is not None:
            raise ConfigError("--coordinator: this stage runs on one host only")
        run = open_run(config_of_run)
        with run_record.locked(run.workdir / f".{lock}.lock"):
            main(run)

    _run_program(start)


def run_grid(main: Callable[[Grid, Path, Sequence[str]], None]) -> None:
    """Parses flags and calls `main` with a grid, its directory and `--set` values.

    `--config` is then a file with `get_grid()`; errors end as in `run_stage`.
    """

    def start() -> None:
        if _CONFIG.value is None:
            raise ConfigError("--config is required: a file with get_grid()")
        grid = config_lib.load_grid(_CONFIG.value)
        workdir = Path(_WORKDIR.value or f"runs/{grid.name}").resolve()
        workdir.mkdir(parents=True, exist_ok=True)
        with run_record.locked(workdir / ".ablate.lock"):
            main(grid, workdir, _SET.value)

    _run_program(start)


def run_device_stage(main: Callable[[Run, "StopSignal"], None]) -> None:
    """Like `run_stage`, for a stage that uses devices, on as many hosts as there are.

    Every host calls `main`, which also gets what tells it to save and end.
    """

    def start() -> None:
        from mlagent_jax.train.stopping import StopSignal

        keep_freed_memory()
        hosts = joined_hosts(
            _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
        )
        with hosts, _open_shared_run() as run, StopSignal() as stop:
            main(run, stop)

    _run_program(start)


def _run_program(start: Callable[[], None]) -> None:
    def absl_main(argv: list[str]) -> None:
        if len(argv) > 1:
            fail(f"unexpected arguments {argv[1:]}; flags are --config --workdir --set")
        die_with_parent()
        try:
            start()
        except RunInterruptedError as error:
            fail(str(error), status=RESTART_STATUS)
        except MlAgentError as error:
            fail(str(error))
        except OSError as error:
            if error.errno is None or error.filename is None:
                raise
            fail(f"{error.strerror}: {error.filename}")
        except KeyboardInterrupt:
            fail("interrupted; the same command continues", status=130)

    # absl's handler would print every library's INFO lines over the progress bars.
    absl_logging.set_verbosity(absl_logging.WARNING)
    app.run(absl_main)


@contextmanager
def _open_shared_run() -> Iterator[Run]:
    """Yields the run that all hosts open; the first one writes run.json.

    Raises:
      ConfigError: see `open_run`; or the hosts disagree about the config.
    """
    from mlagent_jax.parallel import hosts

    config, workdir = _load()
    hosts.check_same({"config": to_json(config), "versions": run_record.versions()})
    with ExitStack() as stack:
        if hosts.is_primary():
            open_run()
            stack.enter_context(run_record.locked(workdir / ".stage.lock"))
        hosts.barrier("run directory")
        yield Run(config=config, workdir=workdir.resolve())


def open_run(config_of_run: bool = False) -> Run:
    """Returns the run that the flags name, with run.json up to date.

    Args:
      config_of_run: without --config, use what run.json in --workdir holds.

    Raises:
      ConfigError: --config is missing or wrong, or the directory belongs to a run
        with another seed, model, tokenizer or set of training tasks.
    """
    if _CONFIG.value is None and config_of_run and _WORKDIR.value is not None:
        return recorded_run(Path(_WORKDIR.value), _SET.value)
    config, workdir = _load()
    workdir.mkdir(parents=True, exist_ok=True)
    run_record.check_identity(config, workdir / "run.json")
    run_record.write_json(workdir / "run.json", run_record.make_record(config))
    return Run(config=config, workdir=workdir.resolve())


def flagged_config() -> RunConfig:
    """Returns the config that the flags name, with overrides.

    Raises:
      ConfigError: --config is missing or wrong.
    """
    if _CONFIG.value is None:
        found = sorted(str(p) for p in Path("configs").glob("*.py"))
        raise ConfigError(f"--config is required; found {found}")
    return config_lib.load_config(_CONFIG.value, _SET.value)


def recorded_run(workdir: Path, overrides: Sequence[str] = ()) -> Run:
    """Returns the run of a directory with the configuration that it was made with.

    Raises:
      ConfigError: there is no such run, or its record is damaged.
    """
    path = workdir / "run.json"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give --config, or a run's --workdir")
    try:
        value = json.loads(path.read_text())["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}); give --config") from error
    config = from_json(RunConfig, value, str(path))
    for override in overrides:
        config = config_lib.apply_override(config, override)
    return Run(config=config, workdir=workdir.resolve())


def _load() -> tuple[RunConfig, Path]:
    config = flagged_config()
    return config, Path(_WORKDIR.value or f"runs/{config.name}")


def given_overrides() -> list[str]:
    """Returns what `--set` gave."""
    return list(_SET.value)


def workdir_or(default: Path) -> Path:
    """Returns `--workdir`, or `default` where it is not given."""
    return Path(_WORKDIR.value) if _WORKDIR.value else default


@contextmanager
def progress(
    total: int, desc: str, unit: str, initial: int = 0, *, unit_scale: bool = False
) -> Iterator[tqdm]:
    """Yields a progress bar with rate and remaining time; call `.update(n)`."""
    is_terminal = sys.stderr.isatty()
    with tqdm(
        total=total,
        desc=f"{desc:<14}",
        unit=unit,
        unit_scale=unit_scale,
        initial=initial,
        disable=_is_other_host(),
        mininterval=0.2 if is_terminal else 15.0,
        maxinterval=1.0 if is_terminal else 30.0,
        dynamic_ncols=is_terminal,
    ) as bar:
        yield bar


def _is_other_host() -> bool:
    if not flags.FLAGS.is_parsed() or _COORDINATOR.value is None:
        return False
    from mlagent_jax.parallel import hosts

    return not hosts.is_primary()
