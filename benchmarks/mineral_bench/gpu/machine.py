"""Which GPU this is, and its clocks while it works: only read, never set."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from importlib import metadata
from statistics import median
from typing import Any, Self

_FACTS = ("driver_version", "power.limit", "clocks.max.sm", "clocks.max.memory", "persistence_mode", "mig.mode.current")
# Two names of one field.
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
_READ = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")
#: Why the clocks are held back, by bit: nvmlClocksEventReasons of the NVML reference.
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
# Time limit of one nvidia-smi, which may have to wake the driver first, and how often the GPU's name is queried.
_PATIENCE, _TIMES = 20.0, 3
_PR_SET_PDEATHSIG = 1


def where(*, is_dry: bool) -> dict[str, str]:
    """Return GPU and PyTorch, which the figures belong to.

    Raises:
        TimeoutError: if nvidia-smi does not say in time which GPU this is.
    """
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "absent"
    found = {} if is_dry else _named()
    return {"gpu": found.get("name", "none"), "uuid": found.get("uuid", "none"), "torch": torch}


def _named() -> dict[str, str]:
    """Return name and UUID of the GPU or the MIG slice; queried again, since figures of two GPUs must not be mixed."""
    for _ in range(_TIMES):
        with suppress(subprocess.TimeoutExpired):
            found = _query(("name", "uuid"))
            mig = _mig_slice(_visible(), _listing()) if _visible().startswith("MIG-") else None
            return {**found, "name": f"{found.get('name', '')}, {mig}", "uuid": _visible()} if mig else found
    raise TimeoutError(
        f"nvidia-smi did not say which GPU this is, {_TIMES} times within {_PATIENCE:.0f} s, and figures of two GPUs "
        f"must not be mixed: run the same command again when nvidia-smi answers"
    )


def described() -> dict[str, Any]:
    """Describe the machine, as far as that is possible without torch."""
    found: dict[str, Any] = {"python": platform.python_version(), "cpus": os.cpu_count()}
    with suppress(AttributeError):  # not on every system
        found["cpus"] = len(os.sched_getaffinity(0))
    return found | {f"nvidia-smi {name}": value for fact in _FACTS for name, value in _query_if_quick((fact,)).items()}


def _query_if_quick(fields: tuple[str, ...]) -> dict[str, str]:
    """Query nvidia-smi; empty if it is not there, does not know one of the fields or takes too long."""
    with suppress(subprocess.TimeoutExpired):
        return _query(fields)
    return {}


def _query(fields: tuple[str, ...]) -> dict[str, str]:
    """Query nvidia-smi; empty if it is not there or does not know one of the fields.

    Raises:
        TimeoutExpired: if it does not answer.
    """
    gpu = gpu_id(_visible(), _listing())
    lines = _nvidia_smi(f"--id={gpu}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits").splitlines()
    return dict(zip(fields, (cell.strip() for cell in lines[0].split(",")), strict=False)) if lines else {}


def _visible() -> str:
    """Return the first GPU that CUDA shows this process: an index, a UUID or the beginning of one."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"


def _listing() -> str:
    """Return the list of GPUs with their MIG slices; not needed for an index."""
    return "" if _visible().isdecimal() else _nvidia_smi("-L")


def _nvidia_smi(*options: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603
            ["nvidia-smi", *options],  # noqa: S607
            check=True,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def gpu_id(visible: str, listing: str) -> str:
    """Return what `nvidia-smi --id` accepts for a GPU: it knows indices and whole UUIDs of GPUs, not of MIG slices.

    Args:
        visible: an entry of CUDA_VISIBLE_DEVICES: index, `GPU-...` or `MIG-...`, UUIDs perhaps shortened.
        listing: what `nvidia-smi -L` prints: a line for each GPU, with its slices on the indented lines after it.
    """
    if visible.startswith("MIG-GPU-"):  # of drivers before 470: MIG-<UUID of the GPU>/<instance>/<instance>
        return visible.removeprefix("MIG-").split("/")[0]
    gpu = ""
    for line in listing.splitlines():
        uuid = re.search(r"UUID: ((?:GPU|MIG)-[^)]*)", line)
        if uuid is None:
            continue
        if uuid[1].startswith("GPU-"):
            gpu = uuid[1]
        if uuid[1].startswith(visible):
            return gpu
    return visible


def _mig_slice(visible: str, listing: str) -> str:
    """Return the kind of a MIG slice, such as `MIG 1g.10gb`."""
    for line in listing.splitlines():
        if visible in line:
            return line.strip().split(" Device")[0].strip()
    return "a MIG slice"


class Watch:
    """Read the GPU's clocks twice a second while a block runs.

    Args:
        is_dry: read nothing, for there is no GPU.

    Attributes:
        readings: field -> value, one dict for each reading.
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
        reasons = next((name for name in _REASONS if _query_if_quick((name,))), None)
        while reasons and not self._stop.wait(_SECONDS):
            found = _query_if_quick((*_READ, reasons))
            if found:
                self.readings.append({**found, "reasons": found[reasons]})


def summary(readings: list[dict[str, str]]) -> dict[str, Any]:
    """Summarize clocks, power and what held them back while the GPU was at least half busy; empty if it never was."""
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
    """Have this process killed when its parent ends, or it would keep the GPU."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
