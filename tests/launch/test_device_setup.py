"""What a training stage asks of the C library before jax starts."""

import subprocess
import sys

_COUNT_FAULTS = """
import resource, sys
from launch.device_setup import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * int(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_faults(how: str) -> int:
    """Returns the page faults of filling 64 MiB that were filled and freed before."""
    command = [sys.executable, "-c", _COUNT_FAULTS, how, str(64 << 20)]
    return int(subprocess.check_output(command, text=True))


def test_memory_that_was_freed_is_used_again_without_page_faults():
    assert count_faults("keep") < 200
    assert count_faults("return") > 10 * count_faults("keep")
