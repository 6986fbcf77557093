"""Memory that is freed stays with the process where the C library can be told so."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys
from mineral_batch.system import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
touched = 0
for step in range(30):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(40_000_000) for _ in range(2)]
    del blocks
    if step >= 5:
        touched += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(touched)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", _PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library of Linux")
def test_freed_memory_is_used_again_without_a_page_fault() -> None:
    assert faults("keep") < faults("as it comes") / 10
