"""Conversion of Qwen-2.5-7B's 15 GB: memory from outside, time against copying.

Run by `make bench`; needs 65 GB of free disk below --basetemp and takes minutes. What
is read is dropped from the page cache before, for copying as for converting.
"""

import shutil

import pytest

from mlagent_jax.config import qwen2_5
from tests.benchmarks import convert_sizes

GIB = 1 << 30
FREE_BYTES = 50 * GIB


def report(name, measured, num_bytes, copy_s):
    rate = num_bytes / measured.seconds / 1e6
    print(
        f"{name:<12} {measured.seconds:6.1f} s  {rate:5.0f} MB/s  "
        f"{measured.seconds / copy_s:4.2f} x copying  "
        f"peak {measured.peak_bytes / GIB:.2f} GiB"
    )


def test_seven_billion_weights_in_bounded_memory(tmp_path):
    if shutil.disk_usage(tmp_path).free < FREE_BYTES:
        pytest.skip(f"needs {FREE_BYTES / GIB:.0f} GiB of free disk")
    first, orbax, second = (tmp_path / name for name in ("first", "orbax", "second"))
    try:
        convert_sizes.write_random_folder(first, qwen2_5("7B"))
        num_bytes = convert_sizes.folder_bytes(first)
        convert_sizes.forget(first)
        copy_s = convert_sizes.copy_seconds(first, tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")
        print(f"\n{num_bytes / 1e9:.1f} GB, copied in {copy_s:.1f} s")
        convert_sizes.forget(first)
        to_orbax = convert_sizes.run_convert(first, orbax, "orbax")
        report("hf -> orbax", to_orbax, num_bytes, copy_s)
        convert_sizes.forget(orbax)
        to_hf = convert_sizes.run_convert(orbax, second, "hf")
        report("orbax -> hf", to_hf, num_bytes, copy_s)
        assert convert_sizes.same_tensors(first, second)
        for measured in (to_orbax, to_hf):
            assert measured.peak_bytes < 4 * GIB
    finally:
        shutil.rmtree(tmp_path)
