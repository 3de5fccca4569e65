"""Backend "bubblewrap": each script gets its own namespaces inside the sandbox.

The sandbox that bubblewrap built holds system libraries, the interpreter and the
public data of all tasks, everything read-only, and no network. Per run, the
supervisor enters new user, mount, pid and IPC namespaces and mounts a workspace of
limited size that lives in memory. The script's process is the first of its pid
namespace, so that killing it kills all that it started, at once and completely.
Nothing that it can write to exists before or after the run.
"""

import contextlib
import os
import signal
import stat

from . import confine, syscall_filter
from .map_users import SCRIPT_ID
from .protocol import Job, Settings

# One folder for all that is ours: no host has its interpreter there.
SANDBOX_DIR = "/mlagent-sandbox"
WORKSPACE = f"{SANDBOX_DIR}/workspace"
TASKS_DIR = f"{SANDBOX_DIR}/tasks"  # every task's public data below, by number
_TMPFS_FLAGS = confine.MS_NOSUID | confine.MS_NODEV
_MAX_SCRATCH_FILES = 4096


class NamespaceConfinement:
    """Puts a run into namespaces of its own.

    Attributes:
      period_s: how often the supervisor looks at the run's usage.
      readable: what scripts may read and must not change.
    """

    period_s = 0.025

    def __init__(self, settings: Settings) -> None:
        """Prepares this process, the zygote.

        Raises:
          OSError: the kernel refuses.
        """
        self.readable = settings.readable
        self._workspace = settings.workspace_root
        self._own_pids: frozenset[int] = frozenset()
        if os.getuid() == 0:
            # bubblewrap as root covers parts of /proc, and the kernel lets nobody mount
            # a fresh /proc where the present one is covered. A script's is read-only.
            for path in reversed(_mounts_below("/proc")):
                confine.unmount(path)

    def prepare(self, job: Job) -> str:
        """Enters new namespaces (supervisor); returns the empty workspace.

        Raises:
          OSError: the kernel refuses.
        """
        self._own_pids = frozenset(_numbers_in_proc())
        if os.getuid() == 0:
            confine.become_user(SCRIPT_ID)
            confine.die_with_parent()  # the change of user switched it off
        confine.unshare(
            confine.CLONE_NEWUSER
            | confine.CLONE_NEWNS
            | confine.CLONE_NEWPID
            | confine.CLONE_NEWIPC
        )
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{SCRIPT_ID} {SCRIPT_ID} 1")
        _write("/proc/self/gid_map", f"{SCRIPT_ID} {SCRIPT_ID} 1")
        with contextlib.suppress(OSError):  # system-call filter refuses them too
            _write("/proc/sys/user/max_user_namespaces", "0")
        confine.mount("none", "/", "", confine.MS_REC | confine.MS_PRIVATE)
        _mount_tmpfs(self._workspace, job.scratch_bytes)
        os.mkdir(os.path.join(self._workspace, "data"))
        return self._workspace

    def hand_over(self) -> None:
        """The workspace belongs to the script's user already."""

    def enter(self, job: Job) -> None:
        """Confines the script's process for good.

        Raises:
          OSError: the kernel refuses.
        """
        os.setsid()
        confine.unshare(confine.CLONE_NEWNS)
        data = os.path.join(self._workspace, "data")
        confine.mount(job.data_dir, data, "", confine.MS_BIND | confine.MS_REC)
        if not os.statvfs(data).f_flag & os.ST_RDONLY:
            raise OSError(f"{data} is not read-only")
        _mount_tmpfs(TASKS_DIR, 4096, confine.MS_RDONLY)  # hides the other tasks
        _mount_tmpfs("/dev/shm", job.file_bytes)
        _mount_tmpfs_around("/tmp", 2 * job.file_bytes)
        _mount_proc()
        os.chdir(self._workspace)  # a path from before would be below the mounts
        # The supervisor is the one other process in this user namespace.
        confine.set_limits(job, num_other_processes=1)
        confine.drop_privileges()
        confine.die_with_parent()
        syscall_filter.install(is_weak_backend=False)

    def pids(self) -> list[int]:
        """Returns the processes of the run (in the supervisor's numbering)."""
        return [p for p in _numbers_in_proc() if p not in self._own_pids]

    def kill(self, pid: int) -> None:
        """Kills the run, of which `pid` is the first process."""
        os.kill(pid, signal.SIGKILL)

    def kill_rest(self) -> None:
        """Nothing is left to kill once the namespace's first process is dead."""

    def is_scratch_full(self, job: Job) -> bool:  # noqa: ARG002
        """Never: the kernel refuses to write more than the job allows."""
        return False

    def events(self) -> list[str]:
        """Returns nothing: what is protected cannot be changed here."""
        return []

    def clean_up(self) -> None:
        """The mounts end with the supervisor's own namespace."""


def _mount_tmpfs(target: str, size_bytes: int, flags: int = 0) -> None:
    options = f"size={size_bytes},nr_inodes={_MAX_SCRATCH_FILES},mode=700"
    confine.mount("tmpfs", target, "tmpfs", _TMPFS_FLAGS | flags, options)


def _mount_tmpfs_around(target: str, size_bytes: int) -> None:
    """Mounts a tmpfs, but keeps what is mounted below: an interpreter may be there."""
    inner = [(path, os.open(path, os.O_PATH)) for path in _mounts_below(target)]
    _mount_tmpfs(target, size_bytes)
    for path, fd in inner:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.makedirs(path, exist_ok=True)
        else:
            open(path, "x").close()
        confine.mount(f"/proc/self/fd/{fd}", path, "", confine.MS_BIND)
        os.close(fd)


def _mount_proc() -> None:
    """Mounts a read-only /proc that shows the run's own processes only.

    Where the kernel refuses because something covers parts of the present /proc, that
    one stays, read-only. It shows the zygote as well; to look into it takes rights
    in a user namespace that the script is not in.
    """
    flags = confine.MS_NOSUID | confine.MS_NODEV | confine.MS_NOEXEC | confine.MS_RDONLY
    try:
        confine.mount("proc", "/proc", "proc", flags)
    except PermissionError:
        confine.mount("/proc", "/proc", "", confine.MS_BIND | confine.MS_REC)
        confine.mount("none", "/proc", "", flags | confine.MS_REMOUNT | confine.MS_BIND)


def _mounts_below(path: str) -> list[str]:
    with open("/proc/self/mounts", encoding="ascii", errors="replace") as mounts:
        # The kernel writes spaces and the like as backslash and octal number.
        points = [x.split()[1].encode().decode("unicode_escape") for x in mounts]
    return [p for p in points if p.startswith(path + "/")]


def _numbers_in_proc() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
