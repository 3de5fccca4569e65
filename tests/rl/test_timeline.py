import json

import pytest

from mlagent_jax.rl.timeline import (
    EXECUTION,
    SAMPLING,
    SCORING,
    UPDATE,
    Timeline,
    covered_s,
    rows_of,
)


def test_overlapping_intervals_count_once_and_only_inside_the_period():
    intervals = [(3.0, 5.0), (0.0, 2.0), (1.0, 4.0), (7.0, 9.0)]
    assert covered_s(intervals, 0.0, 10.0) == 7.0
    assert covered_s(intervals, 1.5, 8.0) == 4.5
    assert covered_s([], 0.0, 1.0) == 0.0


def test_idle_is_what_no_device_lane_covers():
    timeline = Timeline()
    timeline.add(SAMPLING, "replies", 0.0, 4.0)
    timeline.add(EXECUTION, "script", 1.0, 9.0)
    timeline.add(SCORING, "score", 6.0, 7.0)
    timeline.add(UPDATE, "update", 7.0, 9.0)
    timeline.add(SAMPLING, "ahead", 8.0, 10.0)
    assert timeline.idle_frac(0.0, 10.0) == pytest.approx(0.2)


def test_rows_hold_no_overlap_and_the_file_holds_every_span(tmp_path):
    timeline = Timeline()
    for i in range(6):
        timeline.add(EXECUTION, f"script {i}", i * 1.0, i + 1.5)
    with timeline.span(SAMPLING, "replies"):
        pass
    rows = rows_of(s for s in timeline.spans() if s.lane == EXECUTION)
    assert [len(row) for _, row in rows] == [3, 3]
    timeline.write(tmp_path / "timeline.json")
    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert {event["name"] for event in spans} == {
        "replies",
        *(f"script {i}" for i in range(6)),
    }
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in spans)
