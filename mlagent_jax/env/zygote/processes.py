"""Backend "process": what is possible without namespaces. It does not isolate.

For machines where bubblewrap cannot work. A script runs in its own session and a
private directory, under kernel resource limits, without capabilities, behind a filter
of system calls, as another user if we are root, and all its descendants are found and
killed at the end. Known gaps:
  - Without Landlock (Linux 5.13, and not switched off) it can read and write whatever
    this user can: hidden labels, other workspaces, the project. With it, it cannot.
  - Without Landlock 6 (Linux 6.12) it can signal unrelated processes of this user;
    our own and everybody at once are refused.
  - It can replace its copy of data/ (noticed afterwards), see the machine's processes
    and mounts, and leave files in /dev/shm for a later script.
  - It can fill the disk for a moment: the size of its directory is looked at every
    0.1 s, not enforced. As root who may not change user, so is the number of processes,
    and a fork bomb can outrun us.
  - On machines other than x86-64 and 64-bit ARM there is no filter: it has network.
"""

import contextlib
import itertools
import os
import shutil
import signal
import stat
import tempfile
import time

from . import confine, landlock, syscall_filter, usage
from .protocol import Job, Settings

_KILL_TIMEOUT_S = 5.0
_MAX_EVENTS = 5
_FIRST_ID, _NUM_IDS = 64_200, 1_000
_SPARE_THREADS = 200
_SYSTEM_INFORMATION = ("/proc", "/sys/fs/cgroup", "/sys/devices/system")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/shm")


class ProcessConfinement:
    """Gives a run a directory and a session of its own.

    Attributes:
      period_s: how often the supervisor looks at the run's usage; the whole
        machine's processes are listed each time.
      readable: what scripts may read and must not change.
    """

    period_s = 0.1

    def __init__(self, settings: Settings) -> None:
        """Prepares this process, the zygote."""
        confine.set_traceable(False)
        self._root = settings.workspace_root
        self.readable = settings.readable
        self._readable = (*settings.readable, *_SYSTEM_INFORMATION)
        # If we are root, a script is another user: one whom the kernel counts and who
        # owns nothing. One a zygote, so that they do not count for each other.
        self._changes_user = os.getuid() == 0 and confine.may_change_user()
        self._script_id = _FIRST_ID + os.getpid() % _NUM_IDS
        os.chmod(self._root, 0o711)
        # Packages may lie in root's home, where another user has no permission.
        needed = (*settings.readable, os.path.join(self._root, "run"))
        self._keeps_read_search = self._changes_user and not all(
            map(_is_open_to_others, needed)
        )
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
            os.chmod(folder, 0o755)
            for path in (os.path.join(folder, name) for name in names):
                os.chmod(path, 0o444)
                self._data_before[path] = _mark(path)
        os.mkdir(os.path.join(self._run_dir, "tmp"))
        return self._workspace

    def hand_over(self) -> None:
        """Gives the finished workspace to the user whom scripts run as.

        Raises:
          OSError: we may not.
        """
        if not self._changes_user:
            return
        for folder, folders, names in os.walk(self._run_dir):
            if folder == self._workspace:
                folders.remove("data")  # stays ours, and so unchanged
            for path in (folder, *(os.path.join(folder, name) for name in names)):
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
        protected_pids = usage.ancestors(os.getpid())
        if self._changes_user:
            confine.become_user(self._script_id, keep_capabilities=True)
            others = 0
        else:  # the kernel counts processes per user: ours count here, and may grow
            others = _threads_of_this_user() + _SPARE_THREADS
        confine.set_limits(job, num_other_processes=others)
        confine.drop_privileges(keep_read_search=self._keeps_read_search)
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
        found: list[int] = []
        parents = [os.getpid()]
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
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # at once, however fast they fork
        self._kill_descendants()

    def kill_rest(self) -> None:
        """Kills all descendants, those in other sessions too."""
        self._kill_descendants()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # the orphans that we adopted
                pass

    def _kill_descendants(self) -> None:
        deadline_s = time.monotonic() + _KILL_TIMEOUT_S
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
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
        _remove_tree(self._run_dir)


def _remove_tree(root: str) -> None:
    """Removes `root`; takes time that is linear in its entries, however deep it is.

    The paths of a tree that a script nested may be too long to be used at all, so
    every folder that is found is first moved up to `root`.
    """
    fresh_names = itertools.count()
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    while names := os.listdir(root_fd):
        for name in names:
            if not _is_folder(name, root_fd):
                os.unlink(name, dir_fd=root_fd)
                continue
            os.chmod(name, 0o700, dir_fd=root_fd)
            folder_fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=root_fd)
            for inner in os.listdir(folder_fd):
                if _is_folder(inner, folder_fd):
                    os.chmod(inner, 0o700, dir_fd=folder_fd)
                    new_name = f"{os.path.basename(root)}-{next(fresh_names)}"
                    os.rename(inner, new_name, src_dir_fd=folder_fd, dst_dir_fd=root_fd)
                else:
                    os.unlink(inner, dir_fd=folder_fd)
            os.close(folder_fd)
            os.rmdir(name, dir_fd=root_fd)
    os.close(root_fd)
    os.rmdir(root)


def _is_folder(name: str, folder_fd: int) -> bool:
    return stat.S_ISDIR(os.lstat(name, dir_fd=folder_fd).st_mode)


def _is_open_to_others(path: str) -> bool:
    """True if any user may pass all folders down to `path`, or if it is missing."""
    folders = itertools.accumulate(os.path.realpath(path).split("/"), os.path.join)
    try:
        return all(os.stat(f"/{f}").st_mode & stat.S_IXOTH for f in list(folders)[:-1])
    except FileNotFoundError:
        return True
    except PermissionError:
        return False


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
