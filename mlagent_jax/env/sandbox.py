"""Starts zygotes and talks to them; the only place that knows bubblewrap's options.

A sandbox holds one zygote (see `env.zygote`), warm and reused for script after
script. Which script gets what, and what its end means, is `env.executor`'s business.
"""

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mlagent_jax.env.zygote import map_users, namespaces, protocol
from mlagent_jax.errors import ConfigError, DataError
from mlagent_jax.types import from_json

Isolation = Literal["bubblewrap", "process (not isolated)"]

_ZYGOTE_DIR = Path(__file__).parent / "zygote"
_START_TIMEOUT_S = 120.0
_EXIT_TIMEOUT_S = 5.0
_LOG_TAIL_BYTES = 2_000
_SYSTEM_DIRS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# The dynamic linker's cache, the links behind some of Debian's libraries, and where
# one distribution keeps everything.
_SYSTEM_EXTRAS = ("/etc/ld.so.cache", "/etc/alternatives", "/nix/store")
_BOOT = """
import importlib, sys
_, folder, module, *arguments = sys.argv
sys.path.append(folder)
main = importlib.import_module('zygote.' + module).main
sys.path.remove(folder)
sys.exit(main(arguments))
"""


class SandboxDiedError(Exception):
    """The zygote ended, hung or sent nonsense; the text has what it logged."""


class Sandbox:
    """One running zygote.

    Start it from the thread that uses it: the kernel ends it with that thread.
    """

    def __init__(
        self, isolation: Isolation, data_dirs: Sequence[Path], preload: Sequence[str]
    ) -> None:
        """Starts the zygote and waits until it is warm.

        Args:
          isolation: the backend.
          data_dirs: public data of the tasks; jobs name them by their index.
          preload: modules to import.

        Raises:
          ConfigError: a module of `preload` cannot be imported.
          SandboxDiedError: the zygote did not start.
        """
        self._is_bubblewrap = isolation == "bubblewrap"
        self._data_dirs = [path.resolve() for path in data_dirs]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as we do
        self._root = "" if self._is_bubblewrap else tempfile.mkdtemp(prefix="mlagent-")
        self._connection, theirs = socket.socketpair()
        settings = protocol.Settings(
            isolation="bubblewrap" if self._is_bubblewrap else "process",
            workspace_root=self._root or namespaces.WORKSPACE,
            readable=(*_SYSTEM_DIRS, *_SYSTEM_EXTRAS, *map(str, interpreter_paths())),
            preload=tuple(preload),
        )
        with theirs:
            self._process = subprocess.Popen(
                self._command(theirs.fileno(), settings),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=script_environment(),
                cwd="/",
                start_new_session=True,
            )
        try:
            hello, _ = self._receive(_START_TIMEOUT_S, max_blob_bytes=0)
        except SandboxDiedError:
            self.close()
            raise
        if hello["missing"]:
            self.close()
            raise ConfigError(
                f"env.preload: cannot import {', '.join(hello['missing'])}"
            )

    @property
    def pid(self) -> int:
        """The host's process that ends everything else when it ends."""
        return self._process.pid

    def data_path(self, index: int) -> str:
        """Returns where the zygote finds the data directory number `index`."""
        if self._is_bubblewrap:
            return f"{namespaces.TASKS_DIR}/{index}"
        return str(self._data_dirs[index])

    def run(
        self, job: protocol.Job, files: Mapping[str, bytes], timeout_s: float
    ) -> tuple[protocol.Report, dict[str, bytes]]:
        """Runs one script; returns the report and the blobs of `protocol`.

        Args:
          job: what to run; `data_dir` comes from `data_path`.
          files: relative path -> content of the workspace.
          timeout_s: after this many seconds the zygote counts as hung.

        Raises:
          SandboxDiedError: the zygote ended, hung or sent nonsense. Close it.
        """
        blobs = {protocol.FILE_PREFIX + path: data for path, data in files.items()}
        max_blob_bytes = job.kept_bytes + job.file_bytes + 4 * job.kept_output_bytes
        try:
            self._connection.settimeout(timeout_s)
            protocol.send(self._connection, dataclasses.asdict(job), blobs)
        except OSError as e:
            raise SandboxDiedError(f"{e}; {self._log_tail()}") from e
        body, blobs = self._receive(timeout_s, max_blob_bytes=max_blob_bytes)
        try:
            report = from_json(protocol.Report, body, "report of the zygote")
        except DataError as e:
            raise SandboxDiedError(str(e)) from e
        return report, blobs

    def close(self) -> None:
        """Ends the zygote and everything in it."""
        self._connection.close()  # the zygote's signal to end
        try:
            self._process.wait(0.0 if self._is_bubblewrap else _EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()
        if self._root:
            shutil.rmtree(self._root, ignore_errors=True)

    def _receive(
        self, timeout_s: float, *, max_blob_bytes: int
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        self._connection.settimeout(timeout_s)
        try:
            return protocol.receive(self._connection, max_blob_bytes=max_blob_bytes)
        except (OSError, protocol.ProtocolError) as e:
            raise SandboxDiedError(f"{e}; {self._log_tail()}") from e

    def _log_tail(self) -> str:
        """Returns the end of what bubblewrap or the zygote printed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)  # the reason may still be on its way
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_TAIL_BYTES))
        text = self._log.read().decode(errors="replace").strip()
        return f"exit status {self._process.poll()}; log: {text or 'empty'}"

    def _command(self, fd: int, settings: protocol.Settings) -> list[str]:
        inside = Path(namespaces.SANDBOX_DIR)
        folder = inside if self._is_bubblewrap else _ZYGOTE_DIR.parent
        zygote = [*_python(folder, "main"), str(fd), settings.to_json()]
        if not self._is_bubblewrap:
            return zygote
        return [*bubblewrap_command(self._data_dirs), "--", *zygote]


def _python(folder: Path, module: str) -> list[str]:
    """Returns a command that runs `main` of a module of the zygote package."""
    return [sys.executable, "-B", "-P", "-s", "-c", _BOOT, str(folder), module]


def script_environment() -> dict[str, str]:
    """Returns the whole environment of zygotes, and so of scripts."""
    one_thread = {
        f"{library}_NUM_THREADS": "1"
        for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM", "BLIS")
    }
    return {
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        # Order of sets of strings: the same in every worker and after a restart.
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        # n_jobs=-1 then means one; more would start interpreters for seconds.
        "LOKY_MAX_CPU_COUNT": "1",
        **one_thread,
    }


def bubblewrap_command(data_dirs: Sequence[Path]) -> list[str]:
    """Returns the command line up to the program that runs in the sandbox.

    Inside are: system libraries and the interpreter with its packages, the zygote's
    source and the data, all read-only; a private /dev and /proc; nothing else, and no
    network. If we are root, the zygote keeps what it needs to uncover /proc and to make
    a script another user, in a user namespace of its own; else it needs nothing.

    Args:
      data_dirs: mounted at namespaces.TASKS_DIR/<index>.

    Raises:
      SandboxDiedError: bubblewrap is not installed.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxDiedError("bubblewrap is not installed: no `bwrap` on PATH")
    command = [program, "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    command += [
        f"--unshare-{kind}" for kind in ("pid", "net", "ipc", "uts", "cgroup-try")
    ]
    if os.geteuid() == 0:
        command = [*_python(_ZYGOTE_DIR.parent, "map_users"), *command]
        for capability in ("SYS_ADMIN", "SETUID", "SETGID"):
            command += ["--cap-add", f"CAP_{capability}"]
    else:
        user = str(map_users.SCRIPT_ID)
        command += ["--unshare-user", "--uid", user, "--gid", user]
    for path in _SYSTEM_DIRS:
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            command += ["--ro-bind", path, path]
    for path in _SYSTEM_EXTRAS:
        command += ["--ro-bind-try", path, path]
    binds = {path: path for path in interpreter_paths()}
    binds[Path(namespaces.SANDBOX_DIR, "zygote")] = _ZYGOTE_DIR
    for index, path in enumerate(data_dirs):
        binds[Path(namespaces.TASKS_DIR, str(index))] = path
    # Left to itself, bubblewrap makes folders that only root can pass.
    parents = {folder for path in binds for folder in path.parents}
    for folder in sorted(
        {*parents, Path(namespaces.WORKSPACE), Path("/tmp")} - {Path("/")}
    ):
        command += ["--dir", str(folder)]
    for path, source in binds.items():
        command += ["--ro-bind", str(source), str(path)]
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/dev/shm"]
    return [*command, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]


def interpreter_paths() -> list[Path]:
    """Returns the parts of this Python installation that scripts need.

    Only the parts: the prefix of a virtual environment may be the project's folder or
    hold credentials of a package index. What lies below /usr is there anyway.
    """
    found: dict[Path, None] = {}
    for prefix in (sys.base_prefix, sys.prefix):
        for part in ("bin", "lib", "lib64", "pyvenv.cfg"):
            path = Path(prefix) / part
            for known in (path, path.resolve()):
                if known.exists() and not known.is_relative_to("/usr"):
                    found[known] = None
    return list(found)
