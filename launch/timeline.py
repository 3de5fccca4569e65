"""Draws when PPO sampled, executed, scored and updated, from its timeline.json.

    python -m launch.timeline runs/quickstart/ppo
    python -m launch.timeline runs/quickstart/ppo --updates=3

Writes timeline.png beside it. The JSON itself opens in ui.perfetto.dev.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from absl import app, flags

mpl.use("Agg")
import matplotlib.pyplot as plt

from launch.exits import fail

_UPDATES = flags.DEFINE_integer("updates", 4, "How many of the last updates to show.")

_COLORS = {
    "sampling": "#1f6feb",
    "execution": "#2da44e",
    "scoring": "#bf8700",
    "update": "#cf222e",
}


def main(argv: list[str]) -> None:
    """Draws the folder that the command line names."""
    if len(argv) != 2:
        fail("usage: python -m launch.timeline <run>/ppo")
    path = Path(argv[1]) / "timeline.json"
    if not path.is_file():
        fail(f"{path}: no such file; launch.ppo writes it with every checkpoint")
    out = path.with_suffix(".png")
    draw(json.loads(path.read_text())["traceEvents"], out, _UPDATES.value)
    print(out)


def draw(events: list[dict[str, Any]], path: Path, num_updates: int) -> None:
    """Draws the rows of a trace, from the end of an update to the last event."""
    lanes = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    spans = [e for e in events if e["ph"] == "X"]
    ends = sorted(e["ts"] + e["dur"] for e in spans if e["cat"] == "update")
    first = ends[-num_updates - 1] if len(ends) > num_updates else 0.0
    spans = [e for e in spans if e["ts"] >= first]
    figure, axis = plt.subplots(figsize=(12, 0.45 * len(lanes) + 1.2))
    for span in spans:
        axis.barh(
            -span["tid"],
            span["dur"] / 1e6,
            left=(span["ts"] - first) / 1e6,
            color=_COLORS.get(span["cat"], "#888888"),
            edgecolor="white",
            linewidth=0.2,
        )
    axis.set_yticks([-tid for tid in lanes], list(lanes.values()))
    axis.set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    app.run(main)
