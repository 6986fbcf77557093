"""How long a Python process holds its interpreter lock (GIL), sampled from outside by py-spy."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_bench.process.isolated import IsolatedError

if TYPE_CHECKING:
    from collections.abc import Callable

_SAMPLES_PER_SECOND = 200


def find_py_spy() -> str | None:
    """Return the sampler's program: beside this Python, or on the path."""
    return shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")


def share_of_time_held(pid: int, seconds: float, work: Callable[[], object]) -> float:
    """Sample a process for so long while `work` keeps it busy, and return the share of samples with the lock held.

    Args:
        pid: the process.
        seconds: to sample.
        work: called again and again until the sampling ends.

    Raises:
        IsolatedError: if the process cannot be sampled, in one line.
    """
    program = find_py_spy()
    if program is None:
        raise IsolatedError("py-spy is not installed: pip install py-spy")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "stacks.txt")
        options = ["--gil", "--rate", str(_SAMPLES_PER_SECOND), "--duration", str(max(1, round(seconds)))]
        command = [program, "record", "--pid", str(pid), *options, "--format", "raw", "--output", str(output)]
        with subprocess.Popen(  # noqa: S603
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as sampler:
            try:
                while sampler.poll() is None:
                    work()
            finally:
                sampler.kill()
            assert sampler.stderr is not None
            messages = sampler.stderr.read()
        if sampler.returncode or not output.is_file():
            raise IsolatedError(f"py-spy cannot sample the process: {_last_line(messages)}")
        held = count_samples(output.read_text("utf-8", "replace"))
    return held / (_SAMPLES_PER_SECOND * max(1, round(seconds)))


def count_samples(text: str) -> int:
    """Sum the samples in py-spy's raw format: lines `stack count`."""
    counts = (line.rpartition(" ")[2] for line in text.splitlines())
    return sum(int(count) for count in counts if count.isdecimal())


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]
