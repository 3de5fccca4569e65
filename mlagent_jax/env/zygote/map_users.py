"""Runs a command in a user namespace that knows two users: root and one without rights.

Needed where we are root ourselves. A script must then be another user to the kernel,
not root without capabilities: root may write to much of /proc, owns most files, and is
the one user whose processes the kernel does not count. bubblewrap maps one user only.
"""

import os

from . import confine

SCRIPT_ID = 1000  # user and group of scripts, as they see it
_HOST_ID = 64_100  # the same on the host; nobody else should be it


def main(argv: list[str]) -> int:
    """Replaces this process by the command `argv`, in the new namespace.

    Returns:
      1 if the kernel does not let us map users; else not at all.

    Raises:
      OSError: no user namespace, or no such command.
    """
    told, tell = os.pipe()
    mapped = os.getpid()
    helper = os.fork()
    if helper == 0:  # stays outside: only from there two users can be mapped
        os.close(tell)
        status = 1
        try:
            if os.read(told, 1):
                _map_users(mapped)
                status = 0
        finally:
            os._exit(status)
    confine.unshare(confine.CLONE_NEWUSER)
    os.write(tell, b"x")
    _, status = os.waitpid(helper, 0)
    if status != 0:
        return 1
    os.execv(argv[0], argv)


def _map_users(pid: int) -> None:
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(f"0 0 1\n{SCRIPT_ID} {_HOST_ID} 1\n")
