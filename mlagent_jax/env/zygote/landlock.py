"""Landlock: file access by permission list, for the weak backend.

Needs no privilege, but a kernel that has it (5.13; newer ones refuse more). Where it
is missing, scripts can read and write what the user can.
"""

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterable

from . import confine

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_ALL_OF_VERSION_1 = (1 << 13) - 1
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_FOR_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
_BIND_AND_CONNECT_TCP = 3
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 3


def version() -> int:
    """Returns the kernel's Landlock version, 0 if it has none."""
    return max(0, confine.system_call(_CREATE_RULESET, 0, 0, _VERSION_FLAG))


def restrict(readable: Iterable[str], writable: Iterable[str]) -> bool:
    """Confines this process and all it starts to these paths, for good.

    Also, as far as the kernel can: no TCP, and no signals to or tracing of processes
    outside. Needs `confine.drop_privileges` before.

    Args:
      readable: files and folders to read and execute; missing ones are skipped.
      writable: files and folders to use freely.

    Returns:
      False if the kernel has no Landlock; nothing is confined then.

    Raises:
      OSError: the kernel refuses the rules.
    """
    kernel = version()
    if kernel == 0:
        return False
    everything = _ALL_OF_VERSION_1
    everything |= _REFER if kernel >= 2 else 0
    everything |= _TRUNCATE if kernel >= 3 else 0
    everything |= _IOCTL_DEVICE if kernel >= 5 else 0
    attributes = struct.pack(
        "=QQQ",
        everything,
        _BIND_AND_CONNECT_TCP if kernel >= 4 else 0,
        _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if kernel >= 6 else 0,
    )
    size = 24 if kernel >= 6 else 16 if kernel >= 4 else 8
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    ruleset = confine.system_call(_CREATE_RULESET, ctypes.addressof(buffer), size, 0)
    confine.check(min(ruleset, 0), "landlock_create_ruleset")
    for path in readable:
        _allow(ruleset, path, _EXECUTE | _READ_FILE | _READ_DIR)
    for path in writable:
        _allow(ruleset, path, everything)
    result = confine.system_call(_RESTRICT_SELF, ruleset, 0)
    confine.check(result, "landlock_restrict_self")
    os.close(ruleset)
    return True


def _allow(ruleset: int, path: str, access: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            access &= _FOR_FILES
        rule = struct.pack("=Qi", access, fd)
        buffer = ctypes.create_string_buffer(rule, len(rule))
        address = ctypes.addressof(buffer)
        result = confine.system_call(_ADD_RULE, ruleset, _PATH_BENEATH, address, 0)
        confine.check(result, f"landlock_add_rule({path})")
        os.close(fd)
