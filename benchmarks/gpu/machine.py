"""Which GPU this is, and how fast its clocks let it be: only read, never set."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from statistics import median
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path

_FACTS = ("driver_version", "power.limit", "clocks.max.sm", "clocks.max.memory", "persistence_mode", "mig.mode.current")
# The last one has had two names.
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
_READ = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")
#: Bits of what holds the clocks back: nvmlClocksEventReasons of NVML's reference.
_HELD_BACK = {
    0x2: "clocks set by an application",
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x10: "another GPU's clocks",
    0x20: "temperature",
    0x40: "temperature, by hardware",
    0x80: "power brake",
    0x100: "display clocks",
}
_PR_SET_PDEATHSIG = 1


def where(*, is_dry: bool) -> dict[str, str]:
    """What figures belong to: a GPU, by its name and number, and a PyTorch; where one differs they are not mixed."""
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "absent"
    found = {} if is_dry else _asked(("name", "uuid"))
    return {"gpu": found.get("name", "none"), "uuid": found.get("uuid", "none"), "torch": torch}


def described() -> dict[str, Any]:
    """The machine, in words and numbers, as far as it can be told without torch."""
    found: dict[str, Any] = {"python": platform.python_version(), "cpus": os.cpu_count()}
    with suppress(AttributeError):  # not on every system
        found["cpus"] = len(os.sched_getaffinity(0))
    return found | {f"nvidia-smi {name}": value for fact in _FACTS for name, value in _asked((fact,)).items()}


def _asked(fields: tuple[str, ...]) -> dict[str, str]:
    """What nvidia-smi answers; empty if it is not there or does not know one of the fields."""
    try:
        done = subprocess.run(_command(fields), check=True, capture_output=True, text=True, timeout=20)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = done.stdout.strip().splitlines()
    return dict(zip(fields, (cell.strip() for cell in lines[0].split(",")), strict=False)) if lines else {}


def _command(fields: tuple[str, ...]) -> list[str]:
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    return ["nvidia-smi", f"--id={first}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]


class Watch:
    """Reads the GPU's clocks twice a second while a block runs.

    Args:
        log: file of the readings.
        is_dry: without a GPU nothing is read.

    Attributes:
        seen: afterwards, over the readings in which the GPU was at work; empty if there was none.
    """

    def __init__(self, log: Path, *, is_dry: bool) -> None:
        self._log, self._is_dry = log, is_dry
        self._process: subprocess.Popen[bytes] | None = None
        self.seen: dict[str, Any] = {}

    def __enter__(self) -> Self:
        reasons = next((name for name in _REASONS if not self._is_dry and _asked((name,))), None)
        if reasons is not None:
            command = [*_command((*_READ, reasons)), "--loop-ms=500"]
            with self._log.open("wb") as file, suppress(OSError):
                self._process = subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL)  # noqa: S603
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self.seen = summary(self._log.read_text("utf-8", "replace"))


def summary(readings: str) -> dict[str, Any]:
    """Clocks, power and what held them back, of lines of nvidia-smi, while the GPU was at least half busy."""
    rows = [[cell.strip() for cell in reading.split(",")] for reading in readings.splitlines()]
    whole = [row for row in rows if len(row) == len(_READ) + 1]
    busy = [row for row in whole if (_number(row[4]) or 0) >= 50]
    if not busy:
        return {}
    clocks, memory, power, heat = ([value for row in busy if (value := _number(row[i])) is not None] for i in range(4))
    found: dict[str, Any] = {"readings": len(busy)}
    for name, values in {"sm_mhz": clocks, "memory_mhz": memory, "watts": power}.items():
        if values:
            found |= {f"{name}_least": min(values), f"{name}_median": median(values)}
    if heat:
        found["celsius_most"] = max(heat)
    held = {words for row in busy for bit, words in _HELD_BACK.items() if _mask(row[5]) & bit}
    return {**found, "held_back_by": sorted(held)}


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:  # such as [N/A]
        return None


def _mask(cell: str) -> int:
    try:
        return int(cell, 16)
    except ValueError:
        return 0


def end_with_parent() -> None:
    """Let this process be killed when the one that started it ends, or it would keep the GPU."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
