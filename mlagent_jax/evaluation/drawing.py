"""How every figure of the report looks, and the two files it becomes.

A figure is drawn once. The PNG is for papers and chats; the SVG is set into the
report's page, with the neutral colours replaced by the page's own, so that it
follows light and dark.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen before)

from mlagent_jax.evaluation.tables import Table, write_table  # noqa: E402
from mlagent_jax.types import Split  # noqa: E402

INK: Final = "#1b2733"
SOFT: Final = "#5c6b78"
LINE: Final = "#dfe5ea"
PAPER: Final = "#ffffff"
HELD_IN: Final = "#1f8f8a"
HELD_OUT: Final = "#d9603f"
SPLIT_COLORS: Final[Mapping[Split, str]] = {"held_in": HELD_IN, "held_out": HELD_OUT}
SPLIT_LABELS: Final[Mapping[Split, str]] = {
    "held_in": "held-in tasks",
    "held_out": "held-out tasks",
}

_POLICY_COLORS: Final = {
    "starter": "#93a1ad",
    "expert": "#d7973b",
    "sft": "#5b8fd6",
    "ppo": "#1f9d78",
}
_MORE_COLORS: Final = ("#8d63c7", "#cf4f7b", "#4aa3b8", "#a2803f", "#6c7a2e", "#7d6b91")
# Neutral colours of the PNG -> variables of the report's style sheet.
_THEME: Final = {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    LINE: "var(--line)",
    PAPER: "var(--card)",
}
_STYLE: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "path",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawn figure.

    Attributes:
      name: file stem of figures/<name>.png, .svg, .csv and .md.
      title: heading.
      caption: what is seen, and what must be known to read it.
      svg: markup for the report's page.
      table: the numbers that are drawn.
    """

    name: str
    title: str
    caption: str
    svg: str
    table: Table


@contextmanager
def canvas(columns: int = 1, width: float = 9.8, height: float = 3.5) -> Iterator[Any]:
    """Yields (figure, list of axes side by side) in the report's style."""
    with mpl.rc_context(_STYLE):
        figure, grid = plt.subplots(
            1, columns, figsize=(width, height), squeeze=False, layout="constrained"
        )
        try:
            yield figure, list(grid[0])
        finally:
            plt.close(figure)


def finish(
    figure: Any, folder: Path, *, name: str, title: str, caption: str, table: Table
) -> Figure:
    """Writes <folder>/<name>.png, .svg, .md and .csv; returns the figure."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=150)
    salt: dict[Any, Any] = {"svg.hashsalt": name}
    with mpl.rc_context(salt):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    write_table(table, folder)
    svg = themed_svg((folder / f"{name}.svg").read_text(), name)
    return Figure(name=name, title=title, caption=caption, svg=svg, table=table)


def themed_svg(text: str, name: str) -> str:
    """Returns matplotlib's SVG as an element of an HTML page.

    Ids get the prefix `name`, since several figures share a page; addresses of
    name spaces are dropped, which HTML does not need.
    """
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    for color, variable in _THEME.items():
        svg = svg.replace(color, variable)
    return svg


def policy_color(name: str, names: Sequence[str]) -> str:
    """Returns the colour of a policy: fixed for the usual ones, else by position."""
    if name in _POLICY_COLORS:
        return _POLICY_COLORS[name]
    others = [n for n in names if n not in _POLICY_COLORS]
    position = others.index(name) if name in others else 0
    return _MORE_COLORS[position % len(_MORE_COLORS)]


def clean(axis: Any, grid: str = "y") -> None:
    """Leaves of an axis what carries information."""
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis=grid, color=LINE, lw=0.8)
    axis.tick_params(which="both", length=0)
    axis.set_axisbelow(True)
