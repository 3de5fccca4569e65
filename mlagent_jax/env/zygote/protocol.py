"""Messages between the host and a zygote: JSON head, then raw byte strings.

Nothing is ever unpickled: what arrives from a sandbox is data. The receiver caps
what it takes before it takes it.
"""

import dataclasses
import json
import socket
import struct
from collections.abc import Mapping
from typing import Any, Literal

_PREFIX = struct.Struct(">IQ")  # bytes of the head, bytes of all blobs
MAX_HEAD_BYTES = 8 << 20

# Which limit a run was stopped for; "" if none was.
Stop = Literal["", "wall", "cpu", "memory", "output", "processes", "workspace"]


class ProtocolError(Exception):
    """The other side closed the connection or sent something malformed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a zygote works, fixed for its lifetime.

    Attributes:
      isolation: "bubblewrap" or "process".
      workspace_root: the directory that becomes a script's workspace
        ("bubblewrap"), or in which each run gets one ("process").
      readable: paths of the host that scripts need ("process").
      preload: modules imported before the first fork.
    """

    isolation: str
    workspace_root: str
    readable: tuple[str, ...]
    preload: tuple[str, ...]

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Returns the settings that `to_json` wrote."""
        values = json.loads(text)
        return cls(
            isolation=values["isolation"],
            workspace_root=values["workspace_root"],
            readable=tuple(values["readable"]),
            preload=tuple(values["preload"]),
        )

    def to_json(self) -> str:
        """Returns the settings as one line."""
        return json.dumps(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One script to run; its workspace files travel as blobs.

    Attributes:
      script: workspace-relative path of the script.
      data_dir: the task's public data as the zygote sees it.
      wall_s: wall-clock seconds.
      cpu_s: CPU seconds of all its processes.
      memory_bytes: what it may use beyond the warm interpreter it starts from.
      output_bytes: stdout and stderr together.
      file_bytes: largest single file.
      num_processes: processes and threads alive at once.
      scratch_bytes: all files of the workspace while the script runs.
      kept_bytes: all files of the workspace afterwards, the submission apart.
      kept_files: their number.
      kept_output_bytes: head plus tail kept of each output stream.
    """

    script: str
    data_dir: str
    wall_s: float
    cpu_s: float
    memory_bytes: int
    output_bytes: int
    file_bytes: int
    num_processes: int
    scratch_bytes: int
    kept_bytes: int
    kept_files: int
    kept_output_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What happened; output, submission and files travel as blobs.

    Attributes:
      exit_code: exit status, None if a signal ended the script.
      signal: that signal, None if it exited.
      stop: limit for which the supervisor killed it, or refused its files.
      wall_s: seconds from the script's first line to the end of its process.
      cpu_s: user plus system seconds.
      max_rss_bytes: peak resident memory of its largest process.
      stdout_bytes: written in all, kept or not.
      stderr_bytes: written in all, kept or not.
      events: what looks like tampering, "kind:path".
      milestones: what the script achieved, see `milestones`.
    """

    exit_code: int | None
    signal: int | None
    stop: Stop
    wall_s: float
    cpu_s: float
    max_rss_bytes: int
    stdout_bytes: int
    stderr_bytes: int
    events: tuple[str, ...]
    milestones: tuple[str, ...] = ()


STDOUT, STDERR, SUBMISSION = "stdout", "stderr", "submission"
FILE_PREFIX = "file:"  # blob name of the workspace file that follows the colon


def send(
    connection: socket.socket, body: Mapping[str, Any], blobs: Mapping[str, bytes]
) -> None:
    """Sends one message.

    Raises:
      OSError: the connection is broken or its timeout passed.
    """
    sizes = [[name, len(blob)] for name, blob in blobs.items()]
    head = json.dumps({"body": body, "blobs": sizes}).encode()
    total = sum(len(blob) for blob in blobs.values())
    connection.sendall(_PREFIX.pack(len(head), total) + head)
    for blob in blobs.values():
        connection.sendall(blob)


def receive(
    connection: socket.socket, *, max_blob_bytes: int
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Returns the body and the blobs of the next message.

    Raises:
      ProtocolError: end of the connection, or a message that is malformed or
        larger than allowed.
      OSError: the connection is broken or its timeout passed.
    """
    head_bytes, total = _PREFIX.unpack(_receive_exactly(connection, _PREFIX.size))
    if head_bytes > MAX_HEAD_BYTES or total > max_blob_bytes:
        raise ProtocolError(f"message of {head_bytes} + {total} bytes is too large")
    try:
        head = json.loads(_receive_exactly(connection, head_bytes))
        body, sizes = dict(head["body"]), [(str(n), int(s)) for n, s in head["blobs"]]
    except (ValueError, KeyError, TypeError) as e:
        raise ProtocolError(f"malformed message head: {e}") from e
    if any(size < 0 for _, size in sizes) or sum(s for _, s in sizes) != total:
        raise ProtocolError("blob sizes do not add up")
    return body, {name: _receive_exactly(connection, size) for name, size in sizes}


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        received = connection.recv_into(view)
        if received == 0:
            raise ProtocolError("connection closed")
        view = view[received:]
    return bytes(data)
