"""Doubles: an executor that interprets a toy language, a policy with fixed replies."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from mlagent_jax.config import EnvConfig
from mlagent_jax.env.environment import Environment
from mlagent_jax.env.execution_cache import ExecutionCache
from mlagent_jax.env.executor import Execution
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.errors import EnvUnavailableError
from mlagent_jax.policy.base import Reply, Request
from mlagent_jax.types import ExecResult, Outcome, Task
from tests.samples import make_task

NUM_ROWS = 40


class FakeExecutor:
    """Runs "scripts" of one command a line instead of Python.

    `right N` predicts the first N of 40 rows right (every other row is in the
    selection part), `print TEXT`, `warn TEXT`, `save PATH TEXT`, `broken` leaves an
    unreadable submission, `exit N`, `timeout`, `memory`, `limit`; and for our own
    faults `unavailable`, `bug`, `die`, `sleep SECONDS`.
    """

    isolation = "process (not isolated)"

    def __init__(self) -> None:
        self.num_runs = 0
        self.is_closed = False

    def run(self, task_id: str, files: Mapping[str, bytes], script: str) -> Execution:
        self.num_runs += 1
        left = dict(files)
        submission = None
        out, err = [], []
        outcome, code = Outcome.INFO, 0
        for line in files[script].decode().splitlines():
            command, _, rest = line.partition(" ")
            if command == "right":
                submission = make_submission(int(rest))
            elif command == "broken":
                submission = b"not,a\nsubmission,file\n"
            elif command == "print":
                out.append(rest)
            elif command == "warn":
                err.append(rest)
            elif command == "save":
                path, _, text = rest.partition(" ")
                left[path] = text.encode()
            elif command == "exit":
                code, outcome = int(rest), Outcome.SCRIPT_ERROR
                break
            elif command in _LIMITS:
                outcome = _LIMITS[command]
                break
            else:
                _fail(command, rest)
        has_ended = outcome is Outcome.INFO
        result = ExecResult(
            outcome=outcome,
            exit_code=code if outcome not in _LIMITS.values() else None,
            signal=None if outcome not in _LIMITS.values() else 9,
            wall_s=0.5,
            cpu_s=0.5,
            max_rss_bytes=1 << 20,
            stdout="\n".join(out),
            stderr="\n".join(err),
            stdout_bytes=len("\n".join(out)),
            stderr_bytes=len("\n".join(err)),
        )
        return Execution(
            result=result,
            files=left if has_ended else dict(files),
            submission=submission if has_ended else None,
        )

    def close(self) -> None:
        self.is_closed = True


_LIMITS = {
    "timeout": Outcome.TIMEOUT,
    "memory": Outcome.OUT_OF_MEMORY,
    "limit": Outcome.RESOURCE_LIMIT,
}


def _fail(command: str, rest: str) -> None:
    if command == "unavailable":
        raise EnvUnavailableError("the disk is full")
    if command == "bug":
        raise ZeroDivisionError("a fault in the grader")
    if command == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if command == "die_once" and not Path(rest).exists():
        Path(rest).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if command == "sleep":
        time.sleep(float(rest))


class FakePolicy:
    """Answers requests by a function, in a seeded order, after a few polls."""

    name = "fake"

    def __init__(
        self, answer: Callable[[Request], str | Reply], *, delay: int = 0
    ) -> None:
        self.requests: list[Request] = []
        self._answer = answer
        self._delay = delay
        self._pending: list[tuple[int, Request]] = []
        self._num_polls = 0

    def submit(self, request: Request) -> None:
        self.requests.append(request)
        due = self._num_polls + 1 + (request.seed % (self._delay + 1))
        self._pending.append((due, request))

    def poll(self) -> list[Reply]:
        self._num_polls += 1
        due = [r for when, r in self._pending if when <= self._num_polls]
        self._pending = [p for p in self._pending if p[0] > self._num_polls]
        return [self._reply(request) for request in due]

    def num_pending(self) -> int:
        return len(self._pending)

    def close(self) -> None:
        self._pending.clear()

    def _reply(self, request: Request) -> Reply:
        answer = self._answer(request)
        if isinstance(answer, Reply):
            return answer
        return Reply(
            request_id=request.id,
            text=answer,
            finish="stop",
            prompt_tokens=(1, 2),
            tokens=(3,),
            logprobs=(-0.1,),
            seconds=0.25,
        )


def make_submission(num_right: int) -> bytes:
    rows = [f"{i},{int(i < num_right)}" for i in range(NUM_ROWS)]
    return "\n".join(["id,target", *rows, ""]).encode()


def make_graded_task(folder: Path, **changes) -> Task:
    """A task whose hidden labels are all 1; even rows are the selection part."""
    public, private = folder / "public", folder / "private"
    public.mkdir(parents=True, exist_ok=True)
    private.mkdir(exist_ok=True)
    (public / "train.csv").write_text("id,target\n100,1\n")
    rows = [f"{i},1,{'test' if i % 2 else 'selection'}" for i in range(NUM_ROWS)]
    (private / "labels.csv").write_text("\n".join(["id,target,part", *rows, ""]))
    settings = {
        "starter": {"train.py": "print start\nright 20\n"},
        "classes": ("0", "1"),
        "baseline": 0.5,
        "best": 1.0,
        "public_dir": public,
        "private_dir": private,
        "file_hashes": {"public/train.csv": "0" * 64, "private/labels.csv": "1" * 64},
    }
    return make_task(**{**settings, **changes})


def make_fake_environment(
    tasks: Mapping[str, Task], store_root: Path, cfg: EnvConfig
) -> Environment:
    store = SnapshotStore(store_root)
    cache = ExecutionCache(store) if cfg.use_cache else None
    return Environment(tasks, store, FakeExecutor(), cfg, cache)


def make_noted_environment(
    tasks: Mapping[str, Task], store_root: Path, cfg: EnvConfig
) -> Environment:
    """A fake environment whose making leaves a file `<process id>.made`."""
    environment = make_fake_environment(tasks, store_root, cfg)
    store_root.mkdir(parents=True, exist_ok=True)
    (store_root / f"{os.getpid()}.made").touch()
    return environment


def make_broken_environment(
    tasks: Mapping[str, Task], store_root: Path, cfg: EnvConfig
) -> Environment:
    raise KeyError("no environment today")
