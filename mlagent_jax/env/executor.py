"""Runs scripts and says how they ended.

A script's failure is a result. Only our own failure is an exception: a sandbox that
dies is replaced and the script tried again, and where a script reliably takes its
sandbox down while another one works, it is the script's doing.
"""

import dataclasses
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from types import TracebackType
from typing import Self

from mlagent_jax.config import EnvConfig
from mlagent_jax.env.sandbox import Isolation, Sandbox, SandboxDiedError
from mlagent_jax.env.zygote import protocol
from mlagent_jax.errors import ConfigError, EnvUnavailableError
from mlagent_jax.types import CORNER_CASES, ExecResult, Outcome, Task

_log = logging.getLogger(__name__)

_SUBMISSION_FILE = "submission.csv"
_KEPT_BYTES = 64 << 20
_KEPT_FILES = 400
_KEPT_OUTPUT_BYTES = 32 << 10
_SCRATCH_FILES_FACTOR = 4  # the workspace may hold this many files of the largest size
# Set-up, collecting and a busy machine; far above what a healthy run needs.
_GRACE_S = 30.0
_CANARY_JOB_S = 10.0
_NUM_ATTEMPTS = 2
_ERROR_LINES = 12  # of stderr, where the error that ended a script is looked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """A finished script run.

    Attributes:
      result: how it ended.
      files: relative path -> content of the workspace afterwards, without data/ and
        the submission. A run that a limit ended (`CORNER_CASES`) leaves the files as
        they were: where it was cut depends on the machine, not on the script.
      submission: content of submission.csv; None if this run wrote no such file, or
        a limit ended it.
    """

    result: ExecResult
    files: dict[str, bytes]
    submission: bytes | None


class Executor:
    """Runs scripts of any of its tasks, one at a time; a context manager.

    Attributes:
      isolation: "bubblewrap" or "process (not isolated)"; goes on every record.
    """

    def __init__(self, tasks: Mapping[str, Task], cfg: EnvConfig) -> None:
        """Starts a warm sandbox.

        Raises:
          ConfigError: `cfg.isolation` demands bubblewrap and it cannot work here, or
            a module of `cfg.preload` cannot be imported.
          EnvUnavailableError: no sandbox can be started.
        """
        self._tasks = dict(tasks)
        self._indices = {task_id: i for i, task_id in enumerate(self._tasks)}
        self._preload = cfg.preload
        self.isolation: Isolation
        self._sandbox: Sandbox | None
        self.isolation, self._sandbox = self._start_first(cfg.isolation)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, task_id: str, files: Mapping[str, bytes], script: str) -> Execution:
        """Runs `script` in a fresh workspace that holds `files` and the task's data.

        Args:
          task_id: one of the tasks given at construction.
          files: workspace-relative path -> content; a submission.csv among them is
            left out, so that the one that is graded comes from this run.
          script: path of the Python file to run; one of `files`.

        Raises:
          ValueError: `files` holds a path outside the workspace, or lacks `script`.
          EnvUnavailableError: our own machinery failed, twice.
        """
        task = self._tasks[task_id]
        inputs = {p: data for p, data in files.items() if p != _SUBMISSION_FILE}
        if script not in inputs:
            raise ValueError(f"no file {script!r} in the workspace: {sorted(inputs)}")
        for path in inputs:
            _check_inside(path)
        errors: list[str] = []
        while len(errors) < _NUM_ATTEMPTS:
            try:
                report, blobs = self._run_once(task, inputs, script)
                return _make_execution(report, blobs, inputs, self._tasks)
            except SandboxDiedError as e:
                errors.append(str(e))
                _log.warning("sandbox failed (attempt %d): %s", len(errors), e)
        return self._blame(task, inputs, errors[-1])

    def close(self) -> None:
        """Ends the sandbox; may be called twice."""
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None

    def _start_first(self, wanted: str) -> tuple[Isolation, Sandbox]:
        if wanted != "process":
            try:
                return "bubblewrap", self._start_tried("bubblewrap")
            except SandboxDiedError as e:
                if wanted == "bubblewrap":
                    raise ConfigError(
                        f"env.isolation = 'bubblewrap' cannot work here: {e}. Install "
                        "it (`apt install bubblewrap`), allow unprivileged user "
                        "namespaces, or set env.isolation=process"
                    ) from e
                _log.warning(
                    "SCRIPTS ARE NOT ISOLATED: bubblewrap cannot work here (%s). On "
                    "some systems model-written code can now read hidden labels and "
                    "change this user's files (see env/zygote/processes.py); every "
                    "result is stamped 'process (not isolated)'.",
                    e,
                )
        try:
            return "process (not isolated)", self._start_tried("process (not isolated)")
        except SandboxDiedError as e:
            raise EnvUnavailableError(f"cannot start a sandbox: {e}") from e

    def _start_tried(self, isolation: Isolation) -> Sandbox:
        """Returns a sandbox that has run a script.

        Raises:
          SandboxDiedError: it did not start, or a trivial script fails in it.
        """
        sandbox = self._start(isolation)
        try:
            for task in list(self._tasks.values())[:1]:
                self._try_canary(sandbox, task)
        except BaseException:
            sandbox.close()
            raise
        return sandbox

    def _start(self, isolation: Isolation) -> Sandbox:
        data_dirs = [task.public_dir for task in self._tasks.values()]
        try:
            return Sandbox(isolation, data_dirs, self._preload)
        except OSError as e:  # no process, descriptor or disk space left
            raise EnvUnavailableError(f"cannot start a sandbox: {e}") from e

    def _run_once(
        self, task: Task, files: Mapping[str, bytes], script: str
    ) -> tuple[protocol.Report, dict[str, bytes]]:
        """Runs in the warm sandbox, which a failure closes.

        Raises:
          SandboxDiedError: the sandbox failed.
        """
        if self._sandbox is None:
            self._sandbox = self._start(self.isolation)
        try:
            job = self._job(task, self._sandbox, script)
            return self._sandbox.run(job, files, job.wall_s + _GRACE_S)
        except SandboxDiedError:
            self.close()
            raise

    def _job(self, task: Task, sandbox: Sandbox, script: str) -> protocol.Job:
        limits = task.limits
        return protocol.Job(
            script=script,
            data_dir=sandbox.data_path(self._indices[task.id]),
            wall_s=limits.wall_s,
            cpu_s=limits.cpu_s,
            memory_bytes=limits.memory_bytes,
            output_bytes=limits.output_bytes,
            file_bytes=limits.file_bytes,
            num_processes=limits.num_processes,
            scratch_bytes=_SCRATCH_FILES_FACTOR * limits.file_bytes,
            kept_bytes=_KEPT_BYTES,
            kept_files=_KEPT_FILES,
            kept_output_bytes=_KEPT_OUTPUT_BYTES,
        )

    def _try_canary(self, sandbox: Sandbox, task: Task) -> None:
        """Runs a script that cannot fail.

        Raises:
          SandboxDiedError: it failed.
        """
        job = self._job(task, sandbox, "canary.py")
        job = dataclasses.replace(job, wall_s=_CANARY_JOB_S)
        files = {"canary.py": b"print(len(__import__('os').listdir('data')) > 0)"}
        report, blobs = sandbox.run(job, files, _CANARY_JOB_S + _GRACE_S)
        if blobs[protocol.STDOUT] != b"True\n":
            raise SandboxDiedError(f"a trivial script did not work: {report} {blobs}")

    def _blame(self, task: Task, inputs: dict[str, bytes], error: str) -> Execution:
        """Decides whose fault repeated sandbox failures are.

        Raises:
          EnvUnavailableError: a trivial script fails as well: ours.
        """
        try:
            self._sandbox = self._start(self.isolation)
            self._try_canary(self._sandbox, task)
        except SandboxDiedError as e:
            self.close()
            raise EnvUnavailableError(f"sandboxes die: {error}; then: {e}") from e
        result = ExecResult(
            outcome=Outcome.RESOURCE_LIMIT,
            exit_code=None,
            signal=None,
            wall_s=task.limits.wall_s,
            cpu_s=0.0,
            max_rss_bytes=0,
            stdout="",
            stderr="the script took down the sandbox that it ran in",
            stdout_bytes=0,
            stderr_bytes=0,
            integrity_events=("sandbox_killed",),
        )
        return Execution(result=result, files=inputs, submission=None)


def classify(report: protocol.Report, stderr: str) -> Outcome:
    """Returns the outcome of a finished run; never SCORED.

    A limit that stopped the script is certain. One that the script met as a failing
    call shows only in the error that ended it, hence the look at its last line.
    """
    match report.stop:
        case "wall" | "cpu":
            return Outcome.TIMEOUT
        case "memory":
            return Outcome.OUT_OF_MEMORY
        case "output" | "processes" | "workspace":
            return Outcome.RESOURCE_LIMIT
        case "":
            pass
    if report.exit_code == 0:
        return Outcome.INFO
    last_lines = stderr.rstrip().split("\n")[-_ERROR_LINES:]
    if _OUT_OF_MEMORY.search(last_lines[-1]):
        return Outcome.OUT_OF_MEMORY
    # Several processes meet this one together and their lines get mixed.
    if any(_RESOURCE_LIMIT.search(line) for line in last_lines):
        return Outcome.RESOURCE_LIMIT
    return Outcome.SCRIPT_ERROR


_OUT_OF_MEMORY = re.compile(
    r"^[\w.]*MemoryError\b|\bstd::bad_alloc\b|^OSError: \[Errno 12\]"
)
# No space, file too large, no more processes, too many open files.
_RESOURCE_LIMIT = re.compile(
    r"^\w+Error: \[Errno (28|27|11|24)\]|^RuntimeError: can't start new thread"
)
_READ_ONLY_DATA = re.compile(r"Read-only file system: '(?:[^']*/)?(data/[^']*)'")


def _make_execution(
    report: protocol.Report,
    blobs: Mapping[str, bytes],
    inputs: dict[str, bytes],
    tasks: Mapping[str, Task],
) -> Execution:
    stdout, stderr = (
        blobs.get(name, b"").decode(errors="replace")
        for name in (protocol.STDOUT, protocol.STDERR)
    )
    refused = [f"protected_file:{p}" for p in _READ_ONLY_DATA.findall(stderr)[:1]]
    result = ExecResult(
        outcome=classify(report, stderr),
        exit_code=report.exit_code,
        signal=report.signal,
        wall_s=report.wall_s,
        cpu_s=report.cpu_s,
        max_rss_bytes=report.max_rss_bytes,
        stdout=stdout,
        stderr=stderr,
        stdout_bytes=report.stdout_bytes,
        stderr_bytes=report.stderr_bytes,
        integrity_events=tuple(
            dict.fromkeys(name_events((*refused, *report.events), tasks))
        ),
        milestones=_milestones(report, blobs),
    )
    if result.outcome in CORNER_CASES:
        return Execution(result=result, files=inputs, submission=None)
    prefix = protocol.FILE_PREFIX
    return Execution(
        result=result,
        files={
            name.removeprefix(prefix): data
            for name, data in blobs.items()
            if name.startswith(prefix)
        },
        submission=blobs.get(protocol.SUBMISSION),
    )


def _milestones(report: protocol.Report, blobs: Mapping[str, bytes]) -> tuple[str, ...]:
    """Returns what was seen from outside: the script's words are no part of it."""
    seen = {
        "ran_to_end": report.exit_code == 0 and not report.stop,
        "submission_written": protocol.SUBMISSION in blobs,
    }
    return (*report.milestones, *(name for name, is_seen in seen.items() if is_seen))


def name_events(events: Iterable[str], tasks: Mapping[str, Task]) -> Iterator[str]:
    """Yields the events of a sandbox, as "held_back:..." those about hidden data.

    A file that is merely missing in the script's own folder for temporary files is no
    event.
    """
    for event in events:
        kind, _, text = event.partition(":")
        path = PurePosixPath(text)
        if kind != "outside_path":
            yield event
            continue
        for task in tasks.values():
            if path.is_relative_to(task.private_dir):
                inner = path.relative_to(task.private_dir)
                yield f"held_back:{task.id}/private/{inner}"
                break
        else:
            if not path.is_relative_to("/tmp"):
                yield event


def _check_inside(path: str) -> None:
    parts = PurePosixPath(path).parts
    if not parts or parts[0] in {"/", "data"} or ".." in parts or "\0" in path:
        raise ValueError(f"not a path inside the workspace: {path!r}")
