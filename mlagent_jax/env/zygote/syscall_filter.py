"""A seccomp filter: system calls that no script needs and that attacks begin with.

In the namespace backend it is a second wall behind namespaces and dropped
capabilities; in the weak backend it is the only one against the network, against
other processes of the same user, and against changed permissions. Calls that it
refuses fail with EPERM. On machines other than x86-64 and 64-bit ARM there is none.
"""

import ctypes
import errno
import platform
import socket
import struct
from collections.abc import Iterable, Sequence

from . import confine

_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_X32_BIT = 0x40000000  # x86-64 kernels may know a second numbering

# machine -> (AUDIT_ARCH of <linux/audit.h>, column of the tables below)
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

REFUSED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "syslog": (103, 116),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
}
# In the weak backend the script is the same user, on the same files, as we are.
REFUSED_WEAK = {
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "prlimit64": (302, 261),
    "pidfd_send_signal": (424, 424),
}
_SIGNALLING = {  # their first argument is a process
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
}
_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)
_MAX_PROTECTED = 50  # a jump of the filter reaches over 255 instructions
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEW* of clone(2), time namespaces apart


def install(*, is_weak_backend: bool, protected_pids: Sequence[int] = ()) -> None:
    """Filters the system calls of this process and all it starts, for good.

    Needs no privilege, but `confine.drop_privileges` before.

    Args:
      is_weak_backend: refuse also network, changes of permissions, and signals to
        everybody at once.
      protected_pids: processes that signals to are refused, nearest first (weak
        backend).

    Raises:
      OSError: the kernel has no such filters.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return
    program = _program(*machine, is_weak_backend, protected_pids)
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: length in instructions, padding, pointer
    header = struct.pack("@HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    buffer = ctypes.create_string_buffer(header, len(header))
    confine.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(buffer))


def _program(
    arch: int, column: int, is_weak_backend: bool, protected_pids: Sequence[int]
) -> bytes:
    refused = _ERRNO | errno.EPERM
    lines = [
        _line(_LOAD, _ARCH),
        *_if(_EQUAL, arch, [], otherwise=_KILL),
        _line(_LOAD, _NUMBER),
        *_if(_AT_LEAST, _X32_BIT, [_line(_RETURN, refused)]),
    ]
    tables = [REFUSED, REFUSED_WEAK] if is_weak_backend else [REFUSED]
    for numbers in (pair for table in tables for pair in table.values()):
        number = numbers[column]
        if number is not None:
            lines += _if(_EQUAL, number, [_line(_RETURN, refused)])
    # Its flags are behind a pointer; without it, libraries fall back to clone.
    lines += _if(_EQUAL, _CLONE3[column], [_line(_RETURN, _ERRNO | errno.ENOSYS)])
    look = [_line(_LOAD, _FIRST_ARGUMENT)]
    flags = [*look, *_if(_ANY_BIT, _NEW_NAMESPACES, [_line(_RETURN, refused)])]
    lines += _if(_EQUAL, _CLONE[column], [*flags, _line(_RETURN, _ALLOW)])
    families = [socket.AF_UNIX]
    if not is_weak_backend:  # there is no network to reach
        families += [socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK]
    lines += _if(_EQUAL, _SOCKET[column], [*look, *_only(families, refused)])
    if is_weak_backend:
        nearest = protected_pids[:_MAX_PROTECTED]
        targets = [-1, *nearest, *(-pid for pid in nearest)]
        check = [*look]
        for target in targets:
            check += _if(_EQUAL, target & 0xFFFFFFFF, [_line(_RETURN, refused)])
        for pair in _SIGNALLING.values():
            lines += _if(_EQUAL, pair[column], [*check, _line(_RETURN, _ALLOW)])
    return b"".join([*lines, _line(_RETURN, _ALLOW)])


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _if(
    test: int, value: int, then: list[bytes], otherwise: int | None = None
) -> list[bytes]:
    """Returns a test of the loaded word: `then` if it holds, else what follows.

    Args:
      test: _EQUAL, _ANY_BIT or _AT_LEAST.
      value: what to compare with.
      then: instructions, at most 255.
      otherwise: return this if it does not hold, and go on if it does.
    """
    if otherwise is not None:
        return [_line(test, value, 1, 0), _line(_RETURN, otherwise)]
    return [_line(test, value, 0, len(then)), *then]


def _only(values: Iterable[int], refused: int) -> list[bytes]:
    lines: list[bytes] = []
    for value in values:
        lines += _if(_EQUAL, value, [_line(_RETURN, _ALLOW)])
    return [*lines, _line(_RETURN, refused)]
