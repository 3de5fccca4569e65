"""The executor around its sandbox: whose fault it is, and what crosses the border."""

import json
import logging
import os
import shutil
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlagent_jax.config import EnvConfig
from mlagent_jax.env import executor as executor_module
from mlagent_jax.env import sandbox as sandbox_module
from mlagent_jax.env.executor import Executor, classify
from mlagent_jax.env.sandbox import Sandbox, SandboxDiedError
from mlagent_jax.env.zygote import collect, protocol, supervisor, syscall_filter
from mlagent_jax.errors import ConfigError, EnvUnavailableError
from mlagent_jax.types import Limits, Outcome, Task

CFG = EnvConfig(isolation="process", preload=())


@pytest.fixture
def task(tmp_path: Path) -> Task:
    public_dir = tmp_path / "public"
    public_dir.mkdir()
    (public_dir / "train.csv").write_text("a\n1\n")
    return Task(
        id="toy",
        version=1,
        split="held_in",
        modality="tabular",
        description="",
        metric="accuracy",
        direction="max",
        id_column="id",
        target_columns=("y",),
        starter={},
        entry_script="train.py",
        baseline=0.0,
        baseline_std=0.0,
        best=1.0,
        limits=Limits(),
        public_dir=public_dir,
        private_dir=tmp_path / "private",
        file_hashes={},
    )


def report(**changes: Any) -> protocol.Report:
    fields: dict[str, Any] = {
        "exit_code": 0,
        "signal": None,
        "stop": "",
        "wall_s": 0.1,
        "cpu_s": 0.1,
        "max_rss_bytes": 1,
        "stdout_bytes": 0,
        "stderr_bytes": 0,
        "events": (),
    }
    return protocol.Report(**{**fields, **changes})


@pytest.mark.parametrize(
    ("stop", "outcome"),
    [
        ("wall", Outcome.TIMEOUT),
        ("cpu", Outcome.TIMEOUT),
        ("memory", Outcome.OUT_OF_MEMORY),
        ("output", Outcome.RESOURCE_LIMIT),
        ("processes", Outcome.RESOURCE_LIMIT),
        ("workspace", Outcome.RESOURCE_LIMIT),
    ],
)
def test_limit_that_stopped_a_script_decides_its_outcome(
    stop: protocol.Stop, outcome: Outcome
) -> None:
    killed = report(exit_code=None, signal=9, stop=stop)
    assert classify(killed, "ValueError: x") == outcome


@pytest.mark.parametrize(
    ("last_line", "outcome"),
    [
        ("MemoryError", Outcome.OUT_OF_MEMORY),
        ("numpy._core._exceptions._ArrayMemoryError: Unable", Outcome.OUT_OF_MEMORY),
        ("OSError: [Errno 28] No space left on device", Outcome.RESOURCE_LIMIT),
        ("OSError: [Errno 27] File too large", Outcome.RESOURCE_LIMIT),
        ("BlockingIOError: [Errno 11] Resource", Outcome.RESOURCE_LIMIT),
        ("RuntimeError: can't start new thread", Outcome.RESOURCE_LIMIT),
        ("ValueError: MemoryError is a word", Outcome.SCRIPT_ERROR),
        ("", Outcome.SCRIPT_ERROR),
    ],
)
def test_last_line_of_a_failed_script_decides_its_outcome(
    last_line: str, outcome: Outcome
) -> None:
    stderr = f"Traceback (most recent call last):\n{last_line}\n"
    assert classify(report(exit_code=1), stderr) == outcome


def test_clean_exit_is_clean_whatever_was_printed() -> None:
    assert classify(report(), "MemoryError") == Outcome.INFO


@pytest.mark.parametrize(
    "path", ["../x", "/etc/x", "a/../../x", "data/train.csv", "", "a\0b"]
)
def test_file_outside_the_workspace_is_refused(path: str, task: Task) -> None:
    files = {"train.py": b"", path: b""}
    with (
        Executor({"toy": task}, CFG) as executor,
        pytest.raises(ValueError, match="not a path inside the workspace"),
    ):
        executor.run("toy", files, "train.py")


def test_missing_script_is_refused(task: Task) -> None:
    with (
        Executor({"toy": task}, CFG) as executor,
        pytest.raises(ValueError, match=r"no file 'a\.py'"),
    ):
        executor.run("toy", {"train.py": b""}, "a.py")


def test_submission_of_an_earlier_run_does_not_count(task: Task) -> None:
    files = {"train.py": b"", "submission.csv": b"old", "sub/helper.py": b"x = 1"}
    with Executor({"toy": task}, CFG) as executor:
        run = executor.run("toy", files, "train.py")
    assert run.submission is None
    assert run.files == {"train.py": b"", "sub/helper.py": b"x = 1"}


def test_run_that_a_limit_ended_leaves_the_files_as_they_were(task: Task) -> None:
    script = b"open('half', 'w').write('x')\nraise MemoryError"
    with Executor({"toy": task}, CFG) as executor:
        run = executor.run("toy", {"train.py": script}, "train.py")
    assert run.result.outcome == Outcome.OUT_OF_MEMORY
    assert run.files == {"train.py": script}


def test_unknown_module_in_preload_is_a_config_error(task: Task) -> None:
    cfg = EnvConfig(isolation="process", preload=("numpy", "no_such_module"))
    with pytest.raises(ConfigError, match="env.preload: cannot import no_such_module"):
        Executor({"toy": task}, cfg)


def test_demanded_bubblewrap_that_is_missing_says_what_to_install(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_module.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="apt install bubblewrap"):
        Executor({"toy": task}, EnvConfig(isolation="bubblewrap", preload=()))


def test_missing_bubblewrap_falls_back_with_a_warning(
    task: Task, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sandbox_module.shutil, "which", lambda name: None)
    with caplog.at_level(logging.WARNING), Executor({"toy": task}, EnvConfig()) as e:
        assert e.isolation == "process (not isolated)"
    assert "NOT ISOLATED" in caplog.text


def test_bubblewrap_that_does_not_start_falls_back(
    task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho no permission for namespaces >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sandbox_module.shutil, "which", lambda name: str(broken))
    with Executor({"toy": task}, EnvConfig(preload=())) as executor:
        assert executor.isolation == "process (not isolated)"
    assert "no permission for namespaces" in caplog.text


def test_dead_zygote_is_replaced_without_the_script_noticing(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    run = Sandbox.run

    def run_but_die_once(self: Sandbox, job: protocol.Job, *args: Any) -> Any:
        runs.append(job.script)
        if runs == ["canary.py", "train.py"]:
            # With its child, which waits for the job and might still answer.
            os.killpg(self.pid, 9)
        return run(self, job, *args)

    monkeypatch.setattr(Sandbox, "run", run_but_die_once)
    with Executor({"toy": task}, CFG) as executor:
        result = executor.run("toy", {"train.py": b"print(1)"}, "train.py").result
    assert (result.outcome, result.stdout) == (Outcome.INFO, "1\n")
    assert runs == ["canary.py", "train.py", "train.py"]


class DyingSandbox:
    """A sandbox in which `train.py` kills everything, and `canary.py` what it is told.

    Attributes:
      canaries: whether each canary in turn works.
    """

    canaries: Iterator[bool] = iter(())

    def __init__(self, isolation: str, data_dirs: Sequence[Path], preload: Any) -> None:
        pass

    def data_path(self, index: int) -> str:
        return ""

    def run(
        self, job: protocol.Job, files: Mapping[str, bytes], timeout_s: float
    ) -> tuple[protocol.Report, dict[str, bytes]]:
        if job.script != "canary.py" or not next(self.canaries):
            raise SandboxDiedError("gone")
        return report(), {"stdout": b"True\n", "stderr": b""}

    def close(self) -> None:
        pass


def test_script_that_reliably_kills_its_sandbox_is_to_blame(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "Sandbox", DyingSandbox)
    monkeypatch.setattr(DyingSandbox, "canaries", iter([True, True]))
    with Executor({"toy": task}, CFG) as executor:
        run = executor.run("toy", {"train.py": b""}, "train.py")
    assert run.result.outcome == Outcome.RESOURCE_LIMIT
    assert run.result.integrity_events == ("sandbox_killed",)


def test_sandboxes_that_die_of_themselves_are_our_fault(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "Sandbox", DyingSandbox)
    monkeypatch.setattr(DyingSandbox, "canaries", iter([True, False]))
    with (
        Executor({"toy": task}, CFG) as executor,
        pytest.raises(EnvUnavailableError, match="sandboxes die"),
    ):
        executor.run("toy", {"train.py": b""}, "train.py")


def test_two_executors_run_at_once_and_apart(task: Task) -> None:
    script = b"""
import time
begin = time.monotonic()
time.sleep(0.5)
open('submission.csv', 'w').write(f'%d,{begin},{time.monotonic()}')
"""
    found: dict[int, str] = {}

    def run(executor: Executor, i: int) -> None:
        submission = executor.run("toy", {"t.py": script % i}, "t.py").submission
        found[i] = (submission or b"").decode()

    tasks = {"toy": task}
    with Executor(tasks, CFG) as first, Executor(tasks, CFG) as second:
        threads = [
            threading.Thread(target=run, args=pair)
            for pair in [(first, 1), (second, 2)]
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    rows = [[float(x) for x in found[i].split(",")] for i in (1, 2)]
    assert [row[0] for row in rows] == [1, 2]
    assert max(row[1] for row in rows) < min(row[2] for row in rows)  # they overlap


def test_closed_sandbox_leaves_no_process_and_no_folder(
    task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sandbox_module.tempfile, "tempdir", str(tmp_path))
    sandbox = Sandbox("process (not isolated)", [task.public_dir], ())
    assert list(tmp_path.glob("mlagent-*"))
    sandbox.close()
    assert not list(tmp_path.glob("mlagent-*"))
    with pytest.raises(ProcessLookupError):
        os.killpg(sandbox.pid, 0)


def connected() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    return ours, theirs


def test_message_arrives_as_it_was_sent() -> None:
    ours, theirs = connected()
    with ours, theirs:
        protocol.send(theirs, {"a": 1}, {"x": b"\0\xff", "y": b""})
        received = protocol.receive(ours, max_blob_bytes=2)
    assert received == ({"a": 1}, {"x": b"\0\xff", "y": b""})


@pytest.mark.parametrize(
    ("head", "total", "match"),
    [
        (b"{}", 1 << 40, "too large"),
        (b"not json", 0, "malformed"),
        (b'{"body": {}}', 0, "malformed"),
        (json.dumps({"body": {}, "blobs": [["a", -1], ["b", 1]]}).encode(), 0, "add"),
        (json.dumps({"body": {}, "blobs": [["a", 5]]}).encode(), 3, "do not add up"),
    ],
)
def test_malformed_message_is_refused(head: bytes, total: int, match: str) -> None:
    ours, theirs = connected()
    with ours, theirs:
        theirs.sendall(struct.pack(">IQ", len(head), total) + head)
        with pytest.raises(protocol.ProtocolError, match=match):
            protocol.receive(ours, max_blob_bytes=100)


def test_message_cut_short_is_refused() -> None:
    ours, theirs = connected()
    with ours:
        with theirs:
            theirs.sendall(b"\0\0")
        with pytest.raises(protocol.ProtocolError, match="closed"):
            protocol.receive(ours, max_blob_bytes=100)


@pytest.mark.parametrize("num_bytes", [0, 9, 10, 11, 1000])
def test_long_output_keeps_its_head_and_tail(num_bytes: int) -> None:
    data = bytes(i % 251 for i in range(num_bytes))
    output = supervisor.OutputTail(10)
    for i in range(0, num_bytes, 3):
        output.add(data[i : i + 3])
    assert output.num_bytes == num_bytes
    if num_bytes <= 10:
        assert output.text() == data
    else:
        cut = f"\n[... {num_bytes - 10} bytes cut ...]\n".encode()
        assert output.text() == data[:5] + cut + data[-5:]


def job(**changes: Any) -> protocol.Job:
    fields: dict[str, Any] = {
        "script": "train.py",
        "data_dir": "",
        "wall_s": 1.0,
        "cpu_s": 1.0,
        "memory_bytes": 1,
        "output_bytes": 1,
        "file_bytes": 100,
        "num_processes": 1,
        "scratch_bytes": 1,
        "kept_bytes": 100,
        "kept_files": 3,
        "kept_output_bytes": 1,
    }
    return protocol.Job(**{**fields, **changes})


def test_collecting_takes_regular_files_only(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("secret")
    workspace = tmp_path / "w"
    (workspace / "sub").mkdir(parents=True)
    (workspace / "data").mkdir()
    (workspace / "data" / "train.csv").write_text("public")
    (workspace / "sub" / "a.txt").write_text("a")
    (workspace / "link").symlink_to(outside)
    (workspace / "folder").symlink_to(tmp_path)
    (workspace / "hard").hardlink_to(outside)
    os.mkfifo(workspace / "fifo")
    found = collect.collect(str(workspace), job())
    assert found.files == {"sub/a.txt": b"a"}
    assert found.events == tuple(
        f"skipped_file:{name}" for name in ("fifo", "folder", "hard", "link")
    )


@pytest.mark.parametrize(
    "files",
    [
        {f"f{i}": "" for i in range(4)},
        {"a": "x" * 60, "b": "x" * 60},
        {"/".join("d" * 30): ""},
        {"submission.csv": "x" * 101},
    ],
    ids=["many", "large", "deep", "large submission"],
)
def test_collecting_stops_at_its_limits(files: dict[str, str], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert collect.collect(str(tmp_path), job()).is_too_large


def test_interpreter_is_shared_without_the_rest_of_its_prefix() -> None:
    paths = sandbox_module.interpreter_paths()
    assert not {Path("/"), Path.home(), Path.cwd()} & set(paths)
    assert all(p.name in {"bin", "lib", "lib64", "pyvenv.cfg"} for p in paths)


def test_environment_of_scripts_is_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "hush")
    environment = sandbox_module.script_environment()
    assert "hush" not in str(environment)
    assert environment["OMP_NUM_THREADS"] == "1"


def test_every_refused_system_call_has_a_number_once() -> None:
    for column in (0, 1):
        numbers = [pair[column] for pair in syscall_filter.REFUSED.values()]
        assert len(numbers) == len(set(numbers))


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="no bubblewrap")
def test_private_data_is_on_no_command_line(task: Task) -> None:
    command = sandbox_module.bubblewrap_command([task.public_dir])
    assert str(task.public_dir) in command
    assert str(task.private_dir) not in " ".join(command)
    assert not any(part in {"--bind", "--dev-bind", "--share-net"} for part in command)
