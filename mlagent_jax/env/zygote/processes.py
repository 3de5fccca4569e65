"""Backend "process": what is possible without namespaces. It does not isolate.

For machines where bubblewrap cannot work. A script runs in its own session and a
private directory, under kernel resource limits, without capabilities, behind a filter
of system calls, and all its descendants are found and killed at the end. Known gaps:
  - Without Landlock (Linux 5.13, and not switched off) it can read and write whatever
    this user can: hidden labels, other workspaces, the project. With it, it cannot.
  - Without Landlock 6 (Linux 6.12) it can signal unrelated processes of this user;
    our own and everybody at once are refused.
  - It can change its copy of data/ (noticed afterwards), see the machine's processes
    and mounts, and leave files in /dev/shm for a later script.
  - It can fill the disk for a moment: the size of its directory is looked at every
    0.1 s, not enforced. The same holds for the number of its processes.
  - On machines other than x86-64 and 64-bit ARM there is no filter: it has network.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time

from . import confine, landlock, syscall_filter, usage
from .protocol import Job, Settings

_KILL_TIMEOUT_S = 5.0
_MAX_EVENTS = 5
_FIRST_ID, _NUM_IDS = 64_200, 1_000
_SPARE_THREADS = 200
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/shm")


class ProcessConfinement:
    """Gives a run a directory and a session of its own.

    Attributes:
      period_s: how often the supervisor looks at the run's usage; the whole
        machine's processes are listed each time.
    """

    period_s = 0.1

    def __init__(self, settings: Settings) -> None:
        """Prepares this process, the zygote."""
        confine.set_traceable(False)
        self._root = settings.workspace_root
        self._readable = (*settings.readable, "/proc")
        # If we are root, a script is another user: one whom the kernel counts and who
        # owns nothing. One a zygote, so that they do not count for each other.
        self._script_id = _FIRST_ID + os.getpid() % _NUM_IDS
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
        copies = [os.path.join(d, name) for d, _, names in os.walk(data) for name in names]
        for path in copies:
            os.chmod(path, 0o444)
        self._data_before = {path: _mark(path) for path in copies}
        os.mkdir(os.path.join(self._run_dir, "tmp"))
        return self._workspace

    def hand_over(self) -> None:
        """Gives the finished workspace to the user whom scripts run as.

        Raises:
          OSError: we may not.
        """
        if os.getuid() == 0:
            for folder, _, names in os.walk(self._run_dir):
                for path in (folder, *(os.path.join(folder, n) for n in names)):
                    os.chown(path, self._script_id, self._script_id)

    def enter(self, job: Job) -> None:
        """Confines the script's process as far as this backend can.

        Raises:
          OSError: the kernel refuses.
        """
        os.setsid()
        os.chdir(self._workspace)
        os.environ["TMPDIR"] = os.environ["HOME"] = os.path.join(self._run_dir, "tmp")
        tempfile.tempdir = None
        protected_pids = syscall_filter.own_ancestors()
        is_root = os.getuid() == 0
        if is_root:
            confine.become_user(self._script_id, keep_capabilities=True)
        # The kernel counts processes per user: ours count here, and may grow.
        others = 0 if is_root else _threads_of_this_user() + _SPARE_THREADS
        confine.set_limits(job, num_other_processes=others)
        # Packages may lie in root's home, where another user has no permission.
        confine.drop_privileges(keep_read_search=is_root)
        confine.die_with_parent()
        confine.set_traceable(True)
        landlock.restrict(self._readable, (self._run_dir, *_DEVICES))
        syscall_filter.install(is_weak_backend=True, protected_pids=protected_pids)

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
        try:
            for folder, _, names in os.walk(self._run_dir):
                for name in names:
                    with contextlib.suppress(OSError):  # deleted meanwhile
                        total += os.lstat(os.path.join(folder, name)).st_blocks * 512
        except RecursionError:
            return True  # folders nested a thousand deep
        return total > job.scratch_bytes

    def kill(self, pid: int) -> None:
        """Kills the run, of which `pid` is the first process."""
        os.killpg(pid, signal.SIGKILL)  # at once, however fast it forks
        self.kill_rest()

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
        changed = [p for p, mark in self._data_before.items() if _mark(p) != mark]
        names = [os.path.relpath(path, self._workspace) for path in changed]
        return [f"protected_file:{name}" for name in sorted(names)[:_MAX_EVENTS]]

    def clean_up(self) -> None:
        """Removes the run's directory, however the script left it."""
        # shutil.rmtree gives up on trees as deep as a script can make them.
        for command in (["rm", "-rf"], ["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            done = subprocess.run([*command, self._run_dir], capture_output=True)
            if command[0] == "rm" and done.returncode == 0:
                break


def _threads_of_this_user() -> int:
    uid, total = os.getuid(), 0
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdecimal() and os.stat(f"/proc/{name}").st_uid == uid:
                fields = usage.stat_fields(int(name))
                total += int(fields[17]) if fields else 0
    return total


def _mark(path: str) -> tuple[int, ...]:
    """Returns what changes when a file does; () if it is gone."""
    try:
        status = os.lstat(path)
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns
