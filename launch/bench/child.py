"""One peer in a process of its own: requests and answers as JSON lines.

The parent starts every peer once, and sends it one timed call at a time while the
others sleep. A peer's module has `make(work, folder)`, which returns workload name
-> function without arguments that does the work and returns (tokens, detail). Its
standard output goes to standard error, so that libraries may print.
"""

import contextlib
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.bench.shapes import Work

Call = Callable[[], tuple[int, Any]]
ROOT = Path(__file__).parents[2]


class PeerMissingError(Exception):
    """A peer cannot run here; the message says why."""


class Child:
    """The parent's handle on a peer's process."""

    def __init__(self, name: str, python: str, folder: Path) -> None:
        """Starts the process and waits until it has loaded the weights.

        Args:
          name: of the peer; its module is `launch.bench.peer_<name>`.
          python: interpreter that has the peer installed.
          folder: holds work.json and model/.

        Raises:
          PeerMissingError: it did not start; with the last line it wrote.
        """
        self.name = name
        self._log = folder / f"{name}.log"
        cpus = str(len(os.sched_getaffinity(0)))
        env = os.environ | {
            "OMP_NUM_THREADS": cpus,
            "MKL_NUM_THREADS": cpus,
            "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
            "TRANSFORMERS_VERBOSITY": "error",
        }
        command = [python, "-m", "launch.bench.child", name, str(folder)]
        try:
            with self._log.open("w") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    cwd=ROOT,
                    env=env,
                )
        except OSError as error:
            raise PeerMissingError(f"did not start: {error}") from error
        hello = self._read()
        if "ready" not in hello:
            self.close()
            raise PeerMissingError(self._last_word())
        self.versions: dict[str, str] = hello["ready"]

    def run(self, workload: str) -> dict[str, Any]:
        """Returns {"seconds", "cpu_s", "tokens", "detail"} of one call.

        `cpu_s` is the time of all threads: what a busy machine disturbs least.

        Raises:
          PeerMissingError: the process has ended.
        """
        assert self._process.stdin is not None
        answer: dict[str, Any] = {}
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(workload + "\n")
            self._process.stdin.flush()
            answer = self._read()
        if not answer:
            raise PeerMissingError(f"ended during {workload}: {self._last_word()}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _last_word(self) -> str:
        lines = self._log.read_text().strip().splitlines()
        return lines[-1] if lines else "it ended without a word"

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {}


def serve(name: str, folder: Path) -> None:
    """Answers the parent until it closes the pipe."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    peer = importlib.import_module(f"launch.bench.peer_{name}")
    calls: dict[str, Call] = peer.make(Work.load(folder / "work.json"), folder)
    answer({"ready": {"Python": platform.python_version()} | peer.versions()})
    for line in sys.stdin:
        start, start_cpu = time.perf_counter(), time.process_time()
        tokens, detail = calls[line.strip()]()
        answer(
            {
                "seconds": time.perf_counter() - start,
                "cpu_s": time.process_time() - start_cpu,
                "tokens": tokens,
                "detail": detail,
            }
        )


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
