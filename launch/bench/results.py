"""Ratios, table and plot of a benchmark run."""

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

NAMES = {"ours": "mlagent_jax", "hf": "transformers (torch)", "tunix": "Tunix"}
_COLORS = {"ours": "#1f6feb", "hf": "#bbbbbb", "tunix": "#e69138"}
_BEST_OF_PEERS = ("decode_agent", "sft_ragged")


def rates(taken: list[dict[str, float]]) -> list[float]:
    """Returns tokens a second of every round."""
    return [answer["tokens"] / answer["seconds"] for answer in taken]


def make_ratios(rounds: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, Any]:
    """Returns "<workload>/<peer>" -> our median rate over the peer's.

    "<workload>/best_peer" is against the fastest of the peers that were measured.
    """
    ratios: dict[str, float] = {}
    for workload, taken in rounds.items():
        medians = {
            peer: statistics.median(rates(answers))
            for peer, answers in taken.items()
            if answers
        }
        ours = medians.pop("ours", None)
        if ours is None or not medians:
            continue
        for peer, theirs in medians.items():
            ratios[f"{workload}/{peer}"] = round(ours / theirs, 3)
        ratios[f"{workload}/best_peer"] = round(ours / max(medians.values()), 3)
    return ratios


def make_cpu_ratios(
    rounds: dict[str, dict[str, list[dict[str, float]]]],
) -> dict[str, float]:
    """Returns "<workload>/<peer>" -> the peer's median CPU time a token over ours.

    On an idle machine `make_ratios` is the result; where others compute too, the
    wall-clock says who waited longer, and this says who needed more.
    """
    ratios: dict[str, float] = {}
    for workload, taken in rounds.items():
        costs = {
            peer: statistics.median(a["cpu_s"] / a["tokens"] for a in answers)
            for peer, answers in taken.items()
            if answers
        }
        ours = costs.pop("ours", None)
        for peer, theirs in costs.items():
            if ours is not None:
                ratios[f"{workload}/{peer}"] = round(theirs / ours, 3)
    return ratios


def make_table(result: dict[str, Any]) -> str:
    """Returns a Markdown table of medians with minimum and maximum."""
    lines = [
        "| workload | who | tokens/s | min | max | rounds | ratio | CPU | output |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for workload, taken in result["rounds"].items():
        for peer, answers in taken.items():
            values = rates(answers)
            ratio = result["ratios"].get(f"{workload}/{peer}", "")
            cpu = result["cpu_ratios"].get(f"{workload}/{peer}", "")
            same = result["equal"].get(workload, {}).get(peer, "")
            lines.append(
                f"| {workload} | {NAMES[peer]} | {statistics.median(values):,.0f} | "
                f"{min(values):,.0f} | {max(values):,.0f} | {len(values)} | {ratio} | "
                f"{cpu} | {same} |"
            )
    lines += _version_lines(result["versions"])
    lines += [
        f"\n{NAMES[peer]}: not measured ({reason})"
        for peer, reason in result["not_measured"].items()
    ]
    for name, own in result["own"].items():
        lines += ["", f"**{name}**", ""]
        lines += _rows(own)
    return "\n".join(lines) + "\n"


def _version_lines(versions: dict[str, dict[str, dict[str, str]]]) -> list[str]:
    """Returns what each peer ran with, and in which workloads."""
    workloads: dict[tuple[str, str], list[str]] = {}
    for workload, peers in versions.items():
        for peer, libraries in peers.items():
            text = ", ".join(f"{name} {version}" for name, version in libraries.items())
            workloads.setdefault((peer, text), []).append(workload)
    return [
        f"\n{NAMES[peer]}: {text} ({', '.join(names)})"
        for (peer, text), names in workloads.items()
    ]


def _rows(own: dict[str, Any]) -> list[str]:
    """Returns a table of a curve (list of points) or of single numbers."""
    points = own.get("points")
    if not points:
        pairs = _flatten(own).items()
        return ["| what | value |", "|---|---|"] + [f"| {k} | {v} |" for k, v in pairs]
    columns = list(points[0])
    return [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(f"{p[c]:,.4g}" for c in columns) + " |" for p in points),
    ]


def _flatten(value: dict[str, Any]) -> dict[str, Any]:
    """Returns nested dicts as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, part in value.items():
        if isinstance(part, dict):
            flat |= {f"{name}.{k}": v for k, v in _flatten(part).items()}
        else:
            flat[name] = part
    return flat


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws rates by workload, and every curve, into one PNG."""
    curves = {k: v for k, v in result["own"].items() if v.get("points")}
    panels = [*result["rounds"], *curves]
    if not panels:
        return
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.0 * columns, 3.0 * rows), squeeze=False
    )
    for axis, name in zip(axes.flat, panels, strict=False):
        if name in curves:
            _draw_curve(axis, curves[name])
        else:
            _draw_bars(axis, result["rounds"][name])
        axis.set_title(name)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_bars(axis: Any, taken: dict[str, list[dict[str, float]]]) -> None:
    for place, (peer, answers) in enumerate(taken.items()):
        values = rates(answers)
        median = statistics.median(values)
        errors = [[median - min(values)], [max(values) - median]]
        axis.bar(place, median, color=_COLORS[peer], yerr=errors, capsize=4)
    axis.set_xticks(range(len(taken)), [NAMES[p].split(" ")[0] for p in taken])
    axis.set_ylabel("tokens/s")


def _draw_curve(axis: Any, curve: dict[str, Any]) -> None:
    points = curve["points"]
    x_name, *y_names = points[0]
    for y_name in y_names:
        axis.plot(
            [p[x_name] for p in points],
            [p[y_name] for p in points],
            marker="o",
            label=y_name,
        )
    axis.set_xscale("log", base=2)
    axis.set_ylim(bottom=0)
    axis.set_xlabel(x_name)
    axis.legend(fontsize=7)
