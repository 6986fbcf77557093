"""What share of a Python process's CPU time is spent holding its interpreter lock (GIL), sampled by py-spy."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_batch.system import pip_install
from mineral_bench.process.isolated import IsolatedError

if TYPE_CHECKING:
    from collections.abc import Callable

_SAMPLES_PER_SECOND = 200


def find_py_spy() -> str | None:
    """Return the sampler's program: beside this Python, or on the path."""
    return shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")


def share_with_lock(pid: int, seconds: float, work: Callable[[], object]) -> float:
    """Return the share of a process's running time in which its running thread holds the interpreter lock.

    Samples of threads that hold the lock are divided by samples of all running threads, taken one after the other. A
    thread that waits for a core counts as running in both, so other programs do not change the share.

    Args:
        pid: the process.
        seconds: to sample in all.
        work: called again and again while samples are taken.

    Raises:
        IsolatedError: if the process cannot be sampled, in one line.
    """
    held = _samples(pid, seconds / 2, work, "--gil")
    running = _samples(pid, seconds / 2, work)
    if not running:
        raise IsolatedError("py-spy saw no running thread")
    return min(1.0, held / running)


def _samples(pid: int, seconds: float, work: Callable[[], object], *options: str) -> int:
    program = find_py_spy()
    if program is None:
        raise IsolatedError(f"py-spy is not installed: {pip_install('bench')}")
    duration = ["--rate", str(_SAMPLES_PER_SECOND), "--duration", str(max(1, round(seconds)))]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "stacks.txt")
        command = [
            program,
            "record",
            "--pid",
            str(pid),
            *duration,
            "--format",
            "raw",
            "--output",
            str(output),
            *options,
        ]
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
        return count_samples(output.read_text("utf-8", "replace"))


def count_samples(text: str) -> int:
    """Sum the samples in py-spy's raw format: lines `stack count`."""
    counts = (line.rpartition(" ")[2] for line in text.splitlines())
    return sum(int(count) for count in counts if count.isdecimal())


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]
