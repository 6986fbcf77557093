"""Memory and GPU while something is measured."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator


def cpu_seconds() -> float:
    """What processors worked until now for this process and, where Linux tells, for its children that live.

    Those are the ones that `multiprocessing` started, as a DataLoader's workers are.
    """
    files = [Path(f"/proc/{child.pid}/stat") for child in multiprocessing.active_children()]
    return time.process_time() + sum(_ticks(file) for file in files if file.exists()) / _ticks_a_second()


def _ticks(stat: Path) -> int:
    """User and system time of a process; its name, in brackets, may contain anything."""
    fields = stat.read_text("utf-8", "replace").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _ticks_a_second() -> int:
    return os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass
class GpuUsage:
    """What the GPUs did during a block; both empty where there is no NVIDIA GPU.

    Attributes:
        busy: percent of the time in which a kernel ran, one value per sample and GPU.
        memory: MiB in use, likewise.
    """

    busy: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def in_words(self) -> str:
        """For a table; empty without samples."""
        if not self.busy:
            return ""
        return f"GPU busy {np.median(self.busy):.0f} % of the time, up to {max(self.memory):.0f} MiB in use"


@contextmanager
def watch_gpu(every_ms: int = 200) -> Iterator[GpuUsage]:
    """Sample the GPUs with the driver's own tool while the block runs."""
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
    """Add the tool's lines `percent, MiB` to a usage; lines cut off or without numbers are left out."""
    for line in text.splitlines():
        fields = [part.strip() for part in line.split(",")]
        if len(fields) == 2 and all(part.isdigit() for part in fields):
            usage.busy.append(float(fields[0]))
            usage.memory.append(float(fields[1]))
