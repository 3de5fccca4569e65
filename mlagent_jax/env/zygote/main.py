"""Entry of the zygote: import once, then one fork a request.

The zygote itself reads no byte of a request. Its child, forked before the request is
there, reads, runs and answers (`supervisor`); so nothing that a script does can pile
up in the process that later scripts are forked from.
"""

import gc
import importlib
import os
import socket
import sys

from . import confine, namespaces, processes, protocol, supervisor


def main(argv: list[str]) -> int:
    """Serves until the host closes the connection.

    Args:
      argv: number of the inherited socket, and a JSON `Settings`.

    Returns:
      Exit status: 0 after an orderly end, 1 if a run's supervisor failed; its
      traceback is then on stderr, and the host starts another zygote.
    """
    connection = socket.socket(fileno=int(argv[0]))
    os.set_inheritable(connection.fileno(), False)
    settings = protocol.Settings.from_json(argv[1])
    confine.die_with_parent()
    if settings.isolation == "bubblewrap":
        confinement = namespaces.NamespaceConfinement(settings)
    else:
        confinement = processes.ProcessConfinement(settings)
    missing = _preload(settings.preload)
    protocol.send(connection, {"missing": missing}, {})
    # Moves everything so far out of the garbage collector's sight: a collection in
    # a child would otherwise touch, and so copy, every page of the libraries.
    gc.collect()
    gc.freeze()
    while True:
        pid = os.fork()
        if pid == 0:
            supervisor.serve_one(connection, confinement)  # never returns
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            return 0 if code == supervisor.NO_MORE_REQUESTS else 1


def _preload(names: tuple[str, ...]) -> list[str]:
    missing: list[str] = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as e:
            missing.append(f"{name} ({e})")
    if "numpy" in sys.modules:  # imports this one late, and seeds it by chance then
        importlib.import_module("numpy.random")
    return missing


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
