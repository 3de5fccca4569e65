"""Random Hugging Face folders of any size, and converting them under observation.

Shared by bench_convert.py, which does it at the size of Qwen-2.5-7B, and by
tests/launch/test_convert.py.
"""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from mlagent_jax.config import ModelConfig
from mlagent_jax.model.hf_config import config_to_json
from mlagent_jax.model.hf_layout import expected_shapes
from mlagent_jax.model.qwen2 import abstract_params
from mlagent_jax.model.safetensors_files import DTYPES, TensorWriter, read_header

ROOT = Path(__file__).parents[2]
_BLOCK_ROWS = 4_096
_NOISE = 1 << 22
_MAX_FILE_BYTES = 5_000_000_000
_BFLOAT16 = DTYPES["BF16"]


@dataclasses.dataclass(frozen=True)
class Measured:
    """A finished program: wall-clock seconds and largest resident memory."""

    seconds: float
    peak_bytes: int


def write_random_folder(path: Path, cfg: ModelConfig) -> None:
    """Writes a bfloat16 folder with random weights, a few rows at a time."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(2 * _NOISE, np.float32).astype(_BFLOAT16)
    shapes = expected_shapes(abstract_params(cfg))
    path.mkdir(parents=True)
    with TensorWriter(path, shapes, _BFLOAT16, _MAX_FILE_BYTES) as writer:
        for name, (num_rows, *rest) in shapes.items():
            row_size = math.prod(rest)
            block_rows = max(_NOISE // row_size, 1)
            for start in range(0, num_rows, block_rows):
                rows = min(block_rows, num_rows - start)
                offset = int(rng.integers(_NOISE))
                block = noise[offset : offset + rows * row_size]
                writer.write(name, block.reshape(rows, *rest))
    files = writer.files()
    if len(set(files.values())) > 1:
        index = path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": files}))
    config = config_to_json(cfg, "bfloat16", end_ids=(), pad_id=None)
    (path / "config.json").write_text(json.dumps(config))


def run_convert(src: Path, dst: Path, to: str) -> Measured:
    """Runs launch.convert as a program and watches it from outside."""
    return _run(["-m", "launch.convert", f"--src={src}", f"--dst={dst}", f"--to={to}"])


def run_idle() -> Measured:
    """Runs the program without work: what its imports alone need."""
    return _run(["-c", "import launch.convert"])


def _run(arguments: list[str]) -> Measured:
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, process.stderr.read()
    process.returncode = 0
    process.stderr.close()
    return Measured(time.perf_counter() - start, usage.ru_maxrss * 1024)


def folder_bytes(folder: Path) -> int:
    """Returns the size of all files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def forget(folder: Path) -> None:
    """Drops a folder's files from the page cache: all readers wait for the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def copy_seconds(src: Path, dst: Path) -> float:
    """Returns how long it takes to copy a folder and to have it on the disk."""
    start = time.perf_counter()
    shutil.copytree(src, dst)
    subprocess.run(["sync", "-f", str(dst)], check=True)
    return time.perf_counter() - start


def same_tensors(folder: Path, other: Path) -> bool:
    """Returns whether two folders hold the same tensors, bit for bit."""
    ours, theirs = _headers(folder), _headers(other)
    if ours.keys() != theirs.keys():
        return False
    for name, tensor in ours.items():
        for start in range(0, tensor.shape[0], _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            a, b = tensor.read(rows), theirs[name].read(rows)
            if a.dtype != b.dtype or not np.array_equal(_bits(a), _bits(b)):
                return False
    return True


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.dtype.itemsize}")


def _headers(folder: Path):
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return read_header(folder / "model.safetensors")
    tensors = {}
    for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
        tensors |= read_header(folder / name)
    return tensors
