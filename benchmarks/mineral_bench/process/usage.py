"""Memory, CPU time and GPU while something is measured."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator


def cpu_seconds() -> float:
    """Return what CPUs have worked for this process and its children, alive (on Linux) and ended.

    The children are, for example, a DataLoader's workers and the pipeline's decode processes.
    """
    alive = sum(map(_ticks, _descendants(os.getpid())))
    return time.process_time() + alive / _ticks_per_second() + _seconds_of_ended_children()


def memory_mib(process: int) -> float:
    """Return what a process and its children hold now, MiB, shared memory counted once; 0 if it has ended.

    Pages of files (libraries, the model) are not counted: the system can drop them. Only on Linux.
    """
    found = [_status(one) for one in (process, *_descendants(process))]
    own = sum(fields.get("RssAnon", 0) for fields in found)
    return (own + max((fields.get("RssShmem", 0) for fields in found), default=0)) / 2**10


def _status(process: int) -> dict[str, int]:
    """Return the fields of a process's status that are in kB."""
    try:
        lines = Path(f"/proc/{process}/status").read_text("utf-8", "replace").splitlines()
    except OSError:
        return {}
    return {
        name: int(value[:-3]) for name, _, value in (line.partition(":") for line in lines) if value.endswith(" kB")
    }


def _descendants(process: int) -> list[int]:
    """Return the processes that a process has started, and theirs."""
    children: list[int] = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            children += map(int, file.read_text("ascii").split())
    return children + [one for child in children for one in _descendants(child)]


def _ticks(process: int) -> int:
    """Return user and system time of a process; 0 if it has ended."""
    try:
        text = Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()  # the name before it, in brackets, may contain anything
    return int(fields[11]) + int(fields[12])


def _ticks_per_second() -> int:
    return os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def _seconds_of_ended_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def memory_in_all_mib(process: int) -> float:
    """Return what a process and all that it has started hold, MiB: shared pages once, and those of files not at all.

    Pages of files are those of libraries, which any other program on the machine may share. 0 where the system does
    not say.
    """
    return sum(map(_own_kib, [process, *_descendants(process)])) / 2**10


def _own_kib(process: int) -> int:
    """Return the proportional set size of a process without its pages of files; 0 if it has ended."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text("ascii")
    except OSError:
        return 0
    return sum(int(kib) for kib in re.findall(r"^Pss_(?:Anon|Shmem):\s*(\d+) kB", text, re.MULTILINE))


class PeakMemory:
    """The most that a process and its descendants have held while the block ran, sampled.

    Args:
        process: its number.
        every: seconds between two samples.

    Attributes:
        mib: the peak so far; 0 where the system does not say.
    """

    def __init__(self, process: int, every: float = 0.02) -> None:
        self.mib = 0.0
        self._process, self._every = process, every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory")

    def _sample(self) -> None:
        while True:
            self.mib = max(self.mib, memory_in_all_mib(self._process))
            if self._ended.wait(self._every):
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


@dataclass
class GpuUsage:
    """What the GPUs did during a block; both empty without an NVIDIA GPU.

    Attributes:
        busy: percent of the time in which a kernel ran, one value per sample and GPU.
        memory: MiB in use, likewise.
    """

    busy: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def in_words(self) -> str:
        """Return it for a table; empty without samples."""
        if not self.busy:
            return ""
        return f"GPU busy {np.median(self.busy):.0f}% of the time, up to {max(self.memory):.0f} MiB in use"


@contextmanager
def watch_gpu(every_ms: int = 200) -> Iterator[GpuUsage]:
    """Sample the GPUs with nvidia-smi while the block runs."""
    usage, tool = GpuUsage(), shutil.which("nvidia-smi")
    if tool is None:
        yield usage
        return
    query = [
        tool,
        "--query-gpu=utilization.gpu,memory.used",
        "--format=csv,noheader,nounits",
        f"-lms={every_ms}",
    ]
    with tempfile.TemporaryFile("w+") as output:
        sampler = subprocess.Popen(query, stdout=output, stderr=subprocess.DEVNULL)  # noqa: S603
        try:
            yield usage
        finally:
            sampler.terminate()
            sampler.wait()
            output.seek(0)
            read_samples(output.read(), usage)


def read_samples(text: str, usage: GpuUsage) -> None:
    """Add nvidia-smi's lines `percent, MiB` to a usage; incomplete lines are left out."""
    for line in text.splitlines():
        fields = [part.strip() for part in line.split(",")]
        if len(fields) == 2 and all(part.isdigit() for part in fields):
            usage.busy.append(float(fields[0]))
            usage.memory.append(float(fields[1]))
