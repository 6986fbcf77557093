"""Which GPU this is, and how fast its clocks let it be: only read, never set."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from importlib import metadata
from statistics import median
from typing import Any, Self

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
_SECONDS = 0.5
# Of one question to nvidia-smi, which may have to wake the driver first, and how often the GPU's name is asked for.
_PATIENCE, _TIMES = 20.0, 3
_PR_SET_PDEATHSIG = 1


def where(*, is_dry: bool) -> dict[str, str]:
    """A GPU, by its name and number, and a PyTorch: of what figures belong to.

    Raises:
        TimeoutError: if nvidia-smi does not tell in time which GPU this is.
    """
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "absent"
    found = {} if is_dry else _named()
    return {"gpu": found.get("name", "none"), "uuid": found.get("uuid", "none"), "torch": torch}


def _named() -> dict[str, str]:
    """The GPU's name and number: without an answer its figures would pass for another one's, so it is asked again."""
    for _ in range(_TIMES):
        with suppress(subprocess.TimeoutExpired):
            return _answer(("name", "uuid"))
    raise TimeoutError(
        f"nvidia-smi did not say which GPU this is, {_TIMES} times within {_PATIENCE:.0f} s, and figures of two GPUs "
        f"are never mixed: give the same command again when nvidia-smi answers"
    )


def described() -> dict[str, Any]:
    """The machine, in words and numbers, as far as it can be told without torch."""
    found: dict[str, Any] = {"python": platform.python_version(), "cpus": os.cpu_count()}
    with suppress(AttributeError):  # not on every system
        found["cpus"] = len(os.sched_getaffinity(0))
    return found | {f"nvidia-smi {name}": value for fact in _FACTS for name, value in _asked((fact,)).items()}


def _asked(fields: tuple[str, ...]) -> dict[str, str]:
    """What nvidia-smi answers; empty if it is not there, does not know one of the fields or takes too long."""
    with suppress(subprocess.TimeoutExpired):
        return _answer(fields)
    return {}


def _answer(fields: tuple[str, ...]) -> dict[str, str]:
    """What nvidia-smi answers; empty if it is not there or does not know one of the fields.

    Raises:
        TimeoutExpired: if it does not answer.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    command = ["nvidia-smi", f"--id={first}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PATIENCE)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return {}
    lines = done.stdout.strip().splitlines()
    return dict(zip(fields, (cell.strip() for cell in lines[0].split(",")), strict=False)) if lines else {}


class Watch:
    """Reads the GPU's clocks twice a second while a block runs.

    Args:
        is_dry: without a GPU nothing is read.

    Attributes:
        readings: field -> what nvidia-smi answered, one after the other.
    """

    def __init__(self, *, is_dry: bool) -> None:
        self.readings: list[dict[str, str]] = []
        self._stop = threading.Event()
        self._thread = None if is_dry else threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread:
            self._stop.set()
            self._thread.join()

    def _read(self) -> None:
        reasons = next((name for name in _REASONS if _asked((name,))), None)
        while reasons and not self._stop.wait(_SECONDS):
            found = _asked((*_READ, reasons))
            if found:
                self.readings.append({**found, "reasons": found[reasons]})


def summary(readings: list[dict[str, str]]) -> dict[str, Any]:
    """Clocks, power and what held them back while the GPU was at least half busy; empty if it never was."""
    busy = [reading for reading in readings if (_number(reading["utilization.gpu"]) or 0) >= 50]
    if not busy:
        return {}
    found: dict[str, Any] = {"readings": len(busy)}
    for name, field in {"sm_mhz": "clocks.sm", "memory_mhz": "clocks.mem", "watts": "power.draw"}.items():
        values = [value for reading in busy if (value := _number(reading[field])) is not None]
        if values:
            found |= {f"{name}_least": min(values), f"{name}_median": median(values)}
    heat = [value for reading in busy if (value := _number(reading["temperature.gpu"])) is not None]
    if heat:
        found["celsius_most"] = max(heat)
    held = {words for reading in busy for bit, words in _HELD_BACK.items() if _mask(reading["reasons"]) & bit}
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
