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

from . import confine, syscall_filter
from .map_users import SCRIPT_ID
from .protocol import Job, Settings

TASKS_DIR = "/tasks"  # bubblewrap mounts every task's public data below
_TMPFS_FLAGS = confine.MS_NOSUID | confine.MS_NODEV
_MAX_SCRATCH_FILES = 4096


class NamespaceConfinement:
    """Puts a run into namespaces of its own.

    Attributes:
      period_s: how often the supervisor looks at the run's usage.
    """

    period_s = 0.025

    def __init__(self, settings: Settings) -> None:
        """Prepares this process, the zygote.

        Raises:
          OSError: the kernel refuses.
        """
        self._workspace = settings.workspace_root
        self._own_pids: frozenset[int] = frozenset()
        if os.getuid() == 0:
            # bubblewrap as root covers parts of /proc, and the kernel lets nobody mount
            # a fresh /proc where the present one is covered. A script's is read-only.
            for path in _mounts_below("/proc"):
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
        _mount_tmpfs("/tmp", 2 * job.file_bytes)
        _mount_tmpfs("/dev/shm", job.file_bytes)
        confine.mount(
            "proc",
            "/proc",
            "proc",
            confine.MS_RDONLY
            | confine.MS_NOSUID
            | confine.MS_NODEV
            | confine.MS_NOEXEC,
        )
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


def _mounts_below(path: str) -> list[str]:
    with open("/proc/self/mounts") as mounts:
        points = [line.split()[1] for line in mounts]
    return [p for p in reversed(points) if p.startswith(path + "/")]


def _numbers_in_proc() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
