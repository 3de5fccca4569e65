import json

from launch.timeline import draw
from mlagent_jax.rl.timeline import EXECUTION, SAMPLING, SCORING, UPDATE, Timeline


def test_a_written_timeline_can_be_drawn(tmp_path):
    timeline = Timeline()
    for update in range(6):
        start = 10.0 * update
        for reply in range(4):
            timeline.add(SAMPLING, "2 replies", start + reply, start + reply + 0.9)
            timeline.add(EXECUTION, "scored", start + reply + 1, start + reply + 3)
        timeline.add(SCORING, "scoring", start + 7, start + 8)
        timeline.add(UPDATE, "update", start + 8, start + 10)
    timeline.write(tmp_path / "timeline.json")
    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    draw(events, tmp_path / "timeline.png", 3)
    assert (tmp_path / "timeline.png").stat().st_size > 1_000
