"""What ran when in PPO: spans on lanes, the idle part of an update, a Perfetto file.

Recording a span costs about a microsecond; the oldest are forgotten. Open the file
that `write` makes in ui.perfetto.dev or chrome://tracing.
"""

import collections
import contextlib
import dataclasses
import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import monotonic

SAMPLING, EXECUTION, SCORING, UPDATE = "sampling", "execution", "scoring", "update"
# Lanes of the accelerator; executions run on other processors.
DEVICE_LANES = (SAMPLING, SCORING, UPDATE)
_MAX_SPANS = 50_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """One piece of work.

    Attributes:
      lane: which kind, e.g. `SAMPLING`.
      name: shown on it.
      start_s: seconds of `time.monotonic`.
      end_s: likewise.
    """

    lane: str
    name: str
    start_s: float
    end_s: float


class Timeline:
    """Spans as they end, from any thread."""

    def __init__(self) -> None:
        self._spans: collections.deque[Span] = collections.deque(maxlen=_MAX_SPANS)
        self._lock = threading.Lock()

    def add(self, lane: str, name: str, start_s: float, end_s: float) -> None:
        """Records a span."""
        with self._lock:
            self._spans.append(Span(lane=lane, name=name, start_s=start_s, end_s=end_s))

    @contextlib.contextmanager
    def span(self, lane: str, name: str) -> Iterator[None]:
        """Records what runs in the `with` block."""
        start_s = monotonic()
        try:
            yield
        finally:
            self.add(lane, name, start_s, monotonic())

    def spans(self) -> list[Span]:
        """Returns what is recorded, in the order in which it ended."""
        with self._lock:
            return list(self._spans)

    def idle_frac(self, start_s: float, end_s: float) -> float:
        """Returns the part of a period in which the accelerator had nothing to do."""
        busy = [s for s in self.spans() if s.lane in DEVICE_LANES]
        busy_s = covered_s(((s.start_s, s.end_s) for s in busy), start_s, end_s)
        return 1.0 - busy_s / max(end_s - start_s, 1e-9)

    def write(self, path: Path) -> None:
        """Writes a trace in the JSON format of Chrome and Perfetto."""
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps({"traceEvents": _events(self.spans())}))
        os.replace(partial, path)


def covered_s(
    intervals: Iterable[tuple[float, float]], start_s: float, end_s: float
) -> float:
    """Returns how many seconds of [start, end] lie in at least one interval."""
    total_s, reached_s = 0.0, start_s
    for first_s, last_s in sorted(intervals):
        first_s, last_s = max(first_s, reached_s), min(last_s, end_s)
        if last_s > first_s:
            total_s += last_s - first_s
            reached_s = last_s
    return total_s


def rows_of(spans: Iterable[Span]) -> list[tuple[str, list[Span]]]:
    """Returns (lane, spans) rows in which no two spans overlap; lanes may repeat."""
    rows: list[tuple[str, list[Span]]] = []
    for span in sorted(spans, key=lambda s: s.start_s):
        free = (
            row
            for lane, row in rows
            if lane == span.lane and row[-1].end_s <= span.start_s
        )
        row = next(free, None)
        if row is None:
            rows.append((span.lane, [span]))
        else:
            row.append(span)
    order = (*DEVICE_LANES, EXECUTION)
    return sorted(rows, key=lambda row: order.index(row[0]))


def _events(spans: list[Span]) -> list[dict[str, object]]:
    if not spans:
        return []
    zero_s = min(span.start_s for span in spans)
    events: list[dict[str, object]] = []
    for thread, (lane, row) in enumerate(rows_of(spans)):
        names = {"name": lane}
        events.append(
            {"ph": "M", "name": "thread_name", "pid": 0, "tid": thread, "args": names}
        )
        events += [
            {
                "ph": "X",
                "name": span.name,
                "cat": lane,
                "pid": 0,
                "tid": thread,
                "ts": round(1e6 * (span.start_s - zero_s), 1),
                "dur": round(1e6 * (span.end_s - span.start_s), 1),
            }
            for span in row
        ]
    return events
