"""Memory that is freed stays with the process where the C library can be told so."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys
from mineral_batch.system import keep_freed_memory, keep_some_freed_memory

assert {"keep": keep_freed_memory, "keep some": keep_some_freed_memory}.get(sys.argv[1], lambda: True)()
size = int(sys.argv[2])
touched = 0
for step in range(30):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(size) for _ in range(2)]
    del blocks
    if step >= 5:
        touched += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(touched)
"""


def faults(how: str, size: int) -> int:
    done = subprocess.run([sys.executable, "-c", _PROGRAM, how, str(size)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library of Linux")
def test_freed_memory_is_used_again_without_a_page_fault() -> None:
    assert faults("keep", 40_000_000) < faults("as it comes", 40_000_000) / 10
    assert faults("keep some", 12_000_000) < faults("as it comes", 12_000_000) / 10
    assert faults("keep some", 40_000_000) > 10_000, "so much goes back to the kernel"
