"""One run, in a process of its own: prepare, fork the script, watch, kill, answer.

The supervisor is trusted and lives outside what it confines. It measures the
script's own time, drains both pipes, compares usage with the limits, and reads the
workspace only when nothing of the script is alive any more.
"""

import contextlib
import dataclasses
import functools
import mmap
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, Protocol

from . import collect, confine, milestones, protocol, script, tripwire, usage
from .protocol import Job, Report, Stop

NO_MORE_REQUESTS = 3  # exit status of a supervisor

_READ_BYTES = 1 << 16
_READY = b"ready"
_CLOSE_LOOK_PAUSE = 9.0  # at most a tenth of one core goes into close looks


class Confinement(Protocol):
    """What the two backends do differently.

    Attributes:
      period_s: seconds between two looks at the run's usage.
      readable: what scripts may read and must not change.
    """

    period_s: float
    readable: tuple[str, ...]

    def prepare(self, job: Job) -> str:
        """Returns an empty workspace (called by the supervisor)."""
        ...

    def hand_over(self) -> None:
        """Makes the filled workspace the script's own."""
        ...

    def enter(self, job: Job) -> None:
        """Confines the calling process, about to become the script, for good."""
        ...

    def pids(self) -> list[int]:
        """Returns the live processes of the run."""
        ...

    def is_scratch_full(self, job: Job) -> bool:
        """True if the workspace holds more than `job.scratch_bytes`."""
        ...

    def kill(self, pid: int) -> None:
        """Kills the run, of which `pid` is the first process."""
        ...

    def kill_rest(self) -> None:
        """Kills what outlived the script's own process."""
        ...

    def events(self) -> list[str]:
        """Returns which protected files the script changed, "protected_file:path"."""
        ...

    def clean_up(self) -> None:
        """Removes the workspace."""
        ...


class SetupError(Exception):
    """The script's process could not be confined; nothing of the script ran."""


class OutputTail:
    """Keeps the head and the tail of an output stream, and counts the rest."""

    def __init__(self, max_kept_bytes: int) -> None:
        """Keeps at most `max_kept_bytes`, half of them from the start."""
        self._half = max_kept_bytes // 2
        self._head = b""
        self._tail = b""
        self.num_bytes = 0

    def add(self, data: bytes) -> None:
        """Appends `data`."""
        self.num_bytes += len(data)
        missing = self._half - len(self._head)
        self._head += data[:missing]
        self._tail = (self._tail + data[missing:])[-self._half :]

    def text(self) -> bytes:
        """Returns what was kept, with a line that says what was not."""
        cut = self.num_bytes - len(self._head) - len(self._tail)
        middle = f"\n[... {cut} bytes cut ...]\n".encode() if cut else b""
        return self._head + middle + self._tail


def serve_one(connection: socket.socket, confinement: Confinement) -> NoReturn:
    """Waits for a request, answers it, and ends the process.

    Exit status: 0, NO_MORE_REQUESTS if the host closed the connection, else 1.
    """
    status = 1
    try:
        confine.die_with_parent()
        if not connection.recv(1, socket.MSG_PEEK):
            os._exit(NO_MORE_REQUESTS)
        body, blobs = protocol.receive(connection, max_blob_bytes=sys.maxsize)
        answer, contents = _run(Job(**body), blobs, confinement)
        protocol.send(connection, answer, contents)
        status = 0
    except BaseException:  # noqa: BLE001 - the outermost frame of a process
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _run(
    job: Job, blobs: Mapping[str, bytes], confinement: Confinement
) -> tuple[dict[str, object], dict[str, bytes]]:
    workspace = confinement.prepare(job)
    try:
        for name, content in blobs.items():
            _write_file(workspace, name.removeprefix(protocol.FILE_PREFIX), content)
        confinement.hand_over()
        wire = tripwire.Tripwire()
        report, stdout, stderr = _run_script(job, confinement, workspace, wire)
        kept = collect.collect(workspace, job)
        noticed = (*confinement.events(), *wire.notes(), *kept.events)
        events = tuple(dict.fromkeys(noticed))
    finally:
        confinement.clean_up()
    stop: Stop = report.stop or ("workspace" if kept.is_too_large else "")
    report = dataclasses.replace(report, stop=stop, events=events)
    contents = {protocol.STDOUT: stdout.text(), protocol.STDERR: stderr.text()}
    if kept.submission is not None:
        contents[protocol.SUBMISSION] = kept.submission
    for path, content in kept.files.items():
        contents[protocol.FILE_PREFIX + path] = content
    return dataclasses.asdict(report), contents


def _write_file(workspace: str, path: str, content: bytes) -> None:
    full_path = os.path.join(workspace, path)
    os.makedirs(os.path.dirname(full_path), exist_ok=True)
    with open(full_path, "xb") as file:
        file.write(content)


def _run_script(
    job: Job, confinement: Confinement, workspace: str, wire: tripwire.Tripwire
) -> tuple[Report, OutputTail, OutputTail]:
    stdout_fd, stdout_end = os.pipe()
    stderr_fd, stderr_end = os.pipe()
    status_fd, status_end = os.pipe()
    marks = milestones.make_marks()
    pid = os.fork()
    if pid == 0:
        arm = functools.partial(wire.arm, workspace, confinement.readable)
        pipes = (stdout_end, stderr_end, status_end)
        _become_script(job, confinement, marks, arm, *pipes)
    for fd in (stdout_end, stderr_end, status_end):
        os.close(fd)
    with os.fdopen(status_fd, "rb") as status:
        message = status.read()  # ends when the script's process closes its end
    if message != _READY:
        os.waitpid(pid, 0)
        raise SetupError(message.decode(errors="replace"))
    watch = _Watch(job, confinement, pid)
    outputs = {stdout_fd: watch.stdout, stderr_fd: watch.stderr}
    stop, wall_s = watch.until_end(outputs)
    _, wait_status, used = os.wait4(pid, 0)
    confinement.kill_rest()
    for fd, output in outputs.items():
        _drain(fd, output)
        os.close(fd)
    code = os.waitstatus_to_exitcode(wait_status)
    cpu_s = used.ru_utime + used.ru_stime
    if not stop and code == -signal.SIGKILL and cpu_s >= job.cpu_s:
        stop = "cpu"  # the kernel's limit was faster than ours
    report = Report(
        exit_code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        stop=stop,
        wall_s=wall_s,
        cpu_s=cpu_s,
        max_rss_bytes=used.ru_maxrss << 10,
        stdout_bytes=watch.stdout.num_bytes,
        stderr_bytes=watch.stderr.num_bytes,
        events=(),
        milestones=milestones.reached(marks),
    )
    return report, watch.stdout, watch.stderr


def _become_script(
    job: Job,
    confinement: Confinement,
    marks: mmap.mmap,
    arm: Callable[[Sequence[str]], None],
    stdout: int,
    stderr: int,
    status: int,
) -> NoReturn:
    try:
        script.become_fresh_interpreter(
            os.open(os.devnull, os.O_RDONLY), stdout, stderr
        )
        confinement.enter(job)
        os.write(status, _READY)
        os.closerange(3, 4096)
        arm((os.environ["TMPDIR"],))
    except BaseException:  # noqa: BLE001 - the outermost frame of a process
        os.write(status, traceback.format_exc().encode())
        os._exit(1)
    script.run(job.script, marks)


class _Watch:
    """Follows one script until its process ends, killing it at a limit."""

    def __init__(self, job: Job, confinement: Confinement, pid: int) -> None:
        self._job = job
        self._confinement = confinement
        self._pid = pid
        self._start_s = time.monotonic()
        # The script starts with the zygote's pages; its own memory comes on top.
        self._inherited_bytes = usage.measure([pid]).resident_bytes
        self._next_close_look_s = 0.0
        self.stdout = OutputTail(job.kept_output_bytes)
        self.stderr = OutputTail(job.kept_output_bytes)

    def until_end(self, outputs: Mapping[int, OutputTail]) -> tuple[Stop, float]:
        """Returns the limit that ended the script, "" if none, and its seconds."""
        process_fd = os.pidfd_open(self._pid)
        poller = select.poll()
        for fd in (process_fd, *outputs):
            poller.register(fd, select.POLLIN)
        stop: Stop = ""
        next_look_s = self._start_s + self._confinement.period_s
        while True:
            now_s = time.monotonic()
            timeout_s = max(0.0, min(next_look_s, self._deadline_s(stop)) - now_s)
            ready = [fd for fd, _ in poller.poll(timeout_s * 1e3)]
            if process_fd in ready:
                break
            for fd in ready:
                data = os.read(fd, _READ_BYTES)
                outputs[fd].add(data)
                if not data:
                    poller.unregister(fd)
            now_s = time.monotonic()
            if not stop:
                stop = self._passed_limit(now_s, is_look_due=now_s >= next_look_s)
                if stop:
                    self._confinement.kill(self._pid)
            if now_s >= next_look_s:
                next_look_s = now_s + self._confinement.period_s
        wall_s = time.monotonic() - self._start_s
        os.close(process_fd)
        return stop, wall_s

    def _deadline_s(self, stop: Stop) -> float:
        return float("inf") if stop else self._start_s + self._job.wall_s

    def _passed_limit(self, now_s: float, *, is_look_due: bool) -> Stop:
        job = self._job
        if now_s - self._start_s >= job.wall_s:
            return "wall"
        if self.stdout.num_bytes + self.stderr.num_bytes > job.output_bytes:
            return "output"
        if not is_look_due:
            return ""
        pids = self._confinement.pids()
        used = usage.measure(pids)
        if used.num_processes > job.num_processes:
            return "processes"
        if used.cpu_s > job.cpu_s:
            return "cpu"
        if self._confinement.is_scratch_full(job):
            return "workspace"
        return "memory" if self._is_memory_passed(now_s, pids, used) else ""

    def _is_memory_passed(
        self, now_s: float, pids: list[int], used: usage.Usage
    ) -> bool:
        """Looks at the cheap sum first: it counts shared pages again and again."""
        max_bytes = self._job.memory_bytes + self._inherited_bytes
        if used.resident_bytes <= max_bytes or now_s < self._next_close_look_s:
            return False
        is_passed = usage.proportional_bytes(pids) > max_bytes
        end_s = time.monotonic()
        self._next_close_look_s = end_s + _CLOSE_LOOK_PAUSE * (end_s - now_s)
        return is_passed


def _drain(fd: int, output: OutputTail) -> None:
    """Reads what dead processes left in a pipe."""
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        while data := os.read(fd, _READ_BYTES):
            output.add(data)
