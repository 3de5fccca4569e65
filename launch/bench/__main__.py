"""Runs the benchmarks; writes table, plot and JSON to runs/bench.

    make bench
    python -m launch.bench --only=decode_uniform,sft_uniform --rounds=7
    python -m launch.bench --size=hidden=896 --size=mlp=4864 --out=runs/bench_wide
    python -m launch.bench --ours_python=other/bin/python --out=runs/bench_newer_jax

Ours and the peers run in turns, each in a process of its own, on the same weights
and the same work; the first call, which compiles, is not timed. With `--only`,
other results of earlier calls with the same sizes stay; those with other sizes go to
bench.earlier.json. A peer that is not installed is reported as not measured.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import app, flags

from launch.bench.child import ROOT, PeerMissingError
from launch.bench.compare import WORKLOADS, compare
from launch.bench.own import OWN
from launch.bench.results import (
    draw,
    make_cpu_ratios,
    make_ratios,
    make_table,
)
from launch.bench.shapes import parse_shapes
from launch.exits import fail
from launch.run_record import write_json

_FORMAT = 2  # of bench.json

_OUT = flags.DEFINE_string("out", "runs/bench", "Folder of the results.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed calls of everything.")
_ONLY = flags.DEFINE_list("only", [], "Workloads; default all.")
_SIZE = flags.DEFINE_multi_string("size", [], "Another size: --size=batch=16.")
_OURS_PYTHON = flags.DEFINE_string(
    "ours_python",
    sys.executable,
    "Interpreter that runs this project, such as one with a newer jax.",
)
_TUNIX_PYTHON = flags.DEFINE_string(
    "tunix_python", sys.executable, "Interpreter that has google-tunix."
)


def main(argv: list[str]) -> None:
    """Runs what the flags ask for."""
    names = _ONLY.value or [*WORKLOADS, *OWN]
    unknown = sorted(set(names) - WORKLOADS.keys() - OWN.keys())
    if len(argv) > 1 or unknown:
        fail(f"{argv[1:] or unknown}: expected workloads of {[*WORKLOADS, *OWN]}")
    out = Path(_OUT.value).absolute()
    try:
        result = _open(out)
    except ValueError as error:
        fail(str(error))
        return
    pythons = {
        "ours": str(Path(_OURS_PYTHON.value).absolute()),
        "hf": sys.executable,
        "tunix": str(Path(_TUNIX_PYTHON.value).absolute()),
    }
    compared = [name for name in names if name in WORKLOADS]
    for found in _compare(compared, out / "work", pythons):
        for part, value in found.items():
            result[part] |= value
        measured = {peer for peers in found["versions"].values() for peer in peers}
        for peer in measured - found["not_measured"].keys():
            result["not_measured"].pop(peer, None)
        result["ratios"] = make_ratios(result["rounds"])
        result["cpu_ratios"] = make_cpu_ratios(result["rounds"])
        write_json(out / "bench.json", result)
    for name in names:
        if name in OWN:
            result["own"][name] = OWN[name](_ROUNDS.value, out / "work")
            write_json(out / "bench.json", result)
    table = make_table(result)
    (out / "bench.md").write_text(table)
    draw(result, out / "bench.png")
    print(table)


def _compare(
    names: list[str], folder: Path, pythons: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Yields what `compare` yields; ends the program if our own process has ended."""
    try:
        yield from compare(names, _ROUNDS.value, folder, pythons) if names else ()
    except PeerMissingError as error:
        fail(f"this project's own process {error}", status=1)


def _open(out: Path) -> dict[str, Any]:
    """Returns the earlier result in `out`, or prepares the work of a new one."""
    shapes = parse_shapes(_SIZE.value)
    empty = {
        "format": _FORMAT,
        "shapes": vars(shapes),
        "hardware": {"cpus": os.cpu_count(), "machine": platform.machine()},
        **{part: {} for part in ("versions", "not_measured", "rounds", "equal")},
        "ratios": {},
        "cpu_ratios": {},
        "own": {},
    }
    if (out / "bench.json").is_file():
        earlier = json.loads((out / "bench.json").read_text())
        if all(earlier.get(key) == empty[key] for key in ("format", "shapes")):
            return earlier
        kept = (out / "bench.json").replace(out / "bench.earlier.json")
        print(f"{kept}: an earlier result, of other sizes or in another format")
    (out / "work").mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "launch.bench.prepare", str(out / "work"), *_SIZE.value],
        check=True,
        cwd=ROOT,
    )
    write_json(out / "bench.json", empty)
    return empty


if __name__ == "__main__":
    app.run(main)
