"""Backend "process": what is possible without namespaces. It does not isolate.

For machines where bubblewrap cannot work. A script runs in its own session under
kernel resource limits, without capabilities, in a private directory, and all its
descendants are found and killed at the end. It can still
  - read every file that this user can read, hidden labels included,
  - write wherever this user can write (its copy of data/ included: noticed after),
  - see other processes of this user,
  - leave files outside the workspace behind for a later script,
  - fill the disk for a moment: the size of its workspace is looked at, not enforced.
"""

import os
import shutil
import signal
import stat
import tempfile
import time

from . import confine, usage
from .protocol import Job

_KILL_TIMEOUT_S = 5.0
_MAX_EVENTS = 5


class ProcessConfinement:
    """Gives a run a directory and a session of its own.

    Attributes:
      period_s: how often the supervisor looks at the run's usage; the whole
        machine's processes are listed each time.
    """

    period_s = 0.1

    def __init__(self, root: str) -> None:
        """Runs get directories below `root`, an existing private directory."""
        self._root = root
        self._run_dir = ""
        self._workspace = ""
        self._data_before: dict[str, tuple[int, ...]] = {}

    def prepare(self, job: Job) -> str:
        """Returns a new workspace that holds a copy of the data.

        Raises:
          OSError: the disk is full, or the data cannot be read.
        """
        confine.adopt_orphans()
        self._run_dir = tempfile.mkdtemp(dir=self._root)
        self._workspace = os.path.join(self._run_dir, "workspace")
        data = os.path.join(self._workspace, "data")
        shutil.copytree(job.data_dir, data)
        for folder, _, names in os.walk(data):
            for name in names:
                os.chmod(os.path.join(folder, name), 0o444)
        self._data_before = _fingerprints(data)
        os.mkdir(os.path.join(self._run_dir, "tmp"))
        return self._workspace

    def enter(self, job: Job) -> None:
        """Confines the script's process as far as this backend can.

        Raises:
          OSError: the kernel refuses.
        """
        os.setsid()
        os.chdir(self._workspace)
        os.environ["TMPDIR"] = os.environ["HOME"] = os.path.join(self._run_dir, "tmp")
        tempfile.tempdir = None
        # The kernel counts processes per user, not per script: left to the watch.
        confine.set_limits(job, num_other_processes=None)
        confine.drop_privileges()
        confine.die_with_parent()

    def pids(self) -> list[int]:
        """Returns the live descendants of the supervisor."""
        children: dict[int, list[int]] = {}
        for name in os.listdir("/proc"):
            fields = usage.stat_fields(int(name)) if name.isdecimal() else []
            if fields and fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(name))
        found, parents = [], [os.getpid()]
        while parents:
            below = children.get(parents.pop(), [])
            found += below
            parents += below
        return found

    def is_scratch_full(self, job: Job) -> bool:
        """True if the run's directory holds more than the job allows."""
        total = 0
        for folder, _, names in os.walk(self._run_dir):
            for name in names:
                try:
                    total += os.lstat(os.path.join(folder, name)).st_blocks * 512
                except OSError:
                    continue  # deleted meanwhile
        return total > job.scratch_bytes

    def kill_rest(self) -> None:
        """Kills all descendants, those in other sessions too.

        Raises:
          OSError: some are still alive after five seconds.
        """
        deadline_s = time.monotonic() + _KILL_TIMEOUT_S
        while pids := self.pids():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if time.monotonic() > deadline_s:
                raise OSError(f"processes {pids} survive SIGKILL")
            time.sleep(0.001)

    def events(self) -> list[str]:
        """Returns which files of the run's copy of data/ the script changed."""
        after = _fingerprints(os.path.join(self._workspace, "data"))
        before = self._data_before
        changed = [p for p in sorted({*before, *after}) if before.get(p) != after.get(p)]
        return [f"protected_file:data/{path}" for path in changed[:_MAX_EVENTS]]

    def clean_up(self) -> None:
        """Removes the run's directory."""
        for folder, dirs, _ in os.walk(self._run_dir):
            for name in dirs:
                path = os.path.join(folder, name)
                if not os.path.islink(path):
                    os.chmod(path, stat.S_IRWXU)
        shutil.rmtree(self._run_dir, ignore_errors=True)


def _fingerprints(root: str) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            s = os.lstat(path)
            found[os.path.relpath(path, root)] = (s.st_ino, s.st_size, s.st_mtime_ns)
    return found
