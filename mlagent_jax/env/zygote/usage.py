"""What a group of processes uses right now, read from /proc."""

import dataclasses
import os
import resource
from collections.abc import Iterable

_PAGE_BYTES = resource.getpagesize()
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """A moment of a run.

    Attributes:
      num_processes: processes and threads alive.
      cpu_s: user plus system seconds, of finished children too.
      resident_bytes: sum over the processes; pages they share count repeatedly.
    """

    num_processes: int
    cpu_s: float
    resident_bytes: int


def measure(pids: Iterable[int]) -> Usage:
    """Returns the usage of those of `pids` that are alive."""
    threads, ticks, pages = 0, 0, 0
    for pid in pids:
        fields = stat_fields(pid)
        if fields:
            threads += int(fields[17])
            ticks += sum(int(t) for t in fields[11:15])
            pages += int(fields[21])
    return Usage(
        num_processes=threads,
        cpu_s=ticks / _TICKS_PER_S,
        resident_bytes=pages * _PAGE_BYTES,
    )


def stat_fields(pid: int) -> list[str]:
    """Returns /proc/<pid>/stat from the state field on; [] if `pid` is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    # The command, in parentheses, is the process's own choice: skip it whole.
    return text[text.rfind(")") + 2 :].split()


def ancestors(pid: int) -> list[int]:
    """Returns the processes above `pid`, nearest first."""
    found: list[int] = []
    while (fields := stat_fields(pid)) and int(fields[1]) > 0:
        pid = int(fields[1])
        found.append(pid)
    return found


def proportional_bytes(pids: Iterable[int]) -> int:
    """Returns resident memory in which a page shared by n processes counts 1/n.

    Costs milliseconds a process: the kernel walks through all of its memory.
    """
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        total += sum(int(x.split()[1]) << 10 for x in lines if x.startswith(b"Pss:"))
    return total
