"""What every script's process gives up before its first line, and thin system calls.

The calls go through ctypes because `os.unshare` exists only since Python 3.12 and
mounts, capabilities and process controls are not in the standard library at all.
"""

import ctypes
import os
import resource
import signal

from .protocol import Job

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 2, 4
_CAP_DAC_READ_SEARCH = 2
_CAPS_TO_CHANGE_USER = (0, 6, 7)  # CAP_CHOWN, CAP_SETGID, CAP_SETUID
_CAPABILITY_VERSION_3 = 0x20080522
_MAX_OPEN_FILES = 512

_libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Raises the error of the last call if `result` is not 0.

    Raises:
      OSError: it is not.
    """
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def system_call(number: int, *args: int) -> int:
    """Returns what the system call returns, -1 for an error."""
    padded = [ctypes.c_ulong(a) for a in args]
    return int(_libc.syscall(ctypes.c_long(number), *padded))


def unshare(flags: int) -> None:
    """Moves this process into new namespaces.

    Raises:
      OSError: the kernel refuses.
    """
    check(_libc.unshare(flags), f"unshare({flags:#x})")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mounts `source` of file system type `kind` on `target`.

    Raises:
      OSError: the kernel refuses.
    """
    result = _libc.mount(
        source.encode(),
        target.encode(),
        kind.encode(),
        ctypes.c_ulong(flags),
        options.encode(),
    )
    check(result, f"mount {kind} on {target}")


def unmount(target: str) -> None:
    """Detaches the topmost mount on `target`.

    Raises:
      OSError: the kernel refuses.
    """
    check(_libc.umount2(target.encode(), MNT_DETACH), f"unmount {target}")


def prctl(option: int, *args: int) -> None:
    """Sets a control of this process (man 2 prctl).

    Raises:
      OSError: the kernel refuses.
    """
    padded = [ctypes.c_ulong(a) for a in (*args, 0, 0, 0, 0)[:4]]
    check(_libc.prctl(option, *padded), f"prctl({option})")


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent ends.

    Raises:
      OSError: the kernel refuses.
    """
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def set_traceable(is_traceable: bool) -> None:
    """Sets whether other processes of this user may look into this one.

    Raises:
      OSError: the kernel refuses.
    """
    prctl(_PR_SET_DUMPABLE, int(is_traceable))


def adopt_orphans() -> None:
    """Makes this process the parent of descendants whose own parent ends.

    Raises:
      OSError: the kernel refuses.
    """
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def may_change_user() -> bool:
    """True if this process may change files' owners and its own user and groups."""
    with open("/proc/self/status") as status:
        line = next(x for x in status if x.startswith("CapEff:"))
    mask = int(line.split()[1], 16)
    return all(mask >> number & 1 for number in _CAPS_TO_CHANGE_USER)


def become_user(number: int, *, keep_capabilities: bool = False) -> None:
    """Becomes user and group `number`, without other groups.

    Raises:
      OSError: we are not root, or the number is not mapped here.
    """
    prctl(_PR_SET_KEEPCAPS, int(keep_capabilities))
    os.setgroups([])
    os.setresgid(number, number, number)
    os.setresuid(number, number, number)
    set_traceable(True)  # the change switches it off, and /proc/self with it


def drop_privileges(*, keep_read_search: bool = False) -> None:
    """Gives up every capability, now and after any exec, for good.

    Args:
      keep_read_search: keep the one that reads files without permission.

    Raises:
      OSError: the kernel refuses.
    """
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    kept = {_CAP_DAC_READ_SEARCH} if keep_read_search else set[int]()
    for capability in set(range(64)) - kept:
        try:
            prctl(_PR_CAPBSET_DROP, capability)
        except OSError:
            break  # past the kernel's last one, or not ours to drop
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low = sum(1 << capability for capability in kept)
    # effective, permitted, inheritable: the lower 32 of each, then the upper
    sets = (ctypes.c_uint32 * 6)(low, low, low, 0, 0, 0)
    check(_libc.capset(header, sets), "capset")
    for capability in kept:
        prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)


def set_limits(job: Job, num_other_processes: int) -> None:
    """Sets the kernel's own limits on this process and what it starts.

    Args:
      job: the limits.
      num_other_processes: processes and threads that count for this user and are
        none of the script's.

    Raises:
      OSError: a limit is above what the host allows.
    """
    with open("/proc/self/statm") as statm:
        own_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    _lower(resource.RLIMIT_AS, own_bytes + job.memory_bytes)
    # The first process of a pid namespace ignores SIGXCPU, hence no softer limit.
    _lower(resource.RLIMIT_CPU, int(job.cpu_s) + 1)
    _lower(resource.RLIMIT_FSIZE, job.file_bytes)
    _lower(resource.RLIMIT_NOFILE, _MAX_OPEN_FILES)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NPROC, job.num_processes + num_other_processes)


def _lower(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def reset_signals() -> None:
    """Restores the signal handling that a fresh interpreter starts with."""
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is not None:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
