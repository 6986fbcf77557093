"""The conditions of a measurement, without which a figure means nothing a year later."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from mineral_batch.results.fingerprint import file_digest
from mineral_batch.system import cpu_count

_PACKAGES = (
    "mineral-batch", "numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "torch", "timm",
    "simplejpeg", "opencv-python-headless", "opencv-python", "pyvips",
)  # fmt: skip

_MAX_WORDS = 12


def conditions(**facts: Any) -> dict[str, Any]:
    """Record hardware, software, date, command and load, and further facts."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command(),
        "processor": processor(),
        "cores": cpu_count(),
        "load_before": load(),
        "gpu": gpus(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version(), **versions()},
        **facts,
    }


def command() -> str:
    """Return the command as typed, with the names of files and folders but not their places."""
    words = [without_folder(word) for word in sys.argv[1:]]
    shown = words if len(words) <= _MAX_WORDS else [*words[:_MAX_WORDS], "..."]
    return shlex.join([Path(sys.argv[0]).name, *shown])


def without_folder(word: str) -> str:
    """Return the name of a file alone if a place on this machine was typed."""
    return Path(word).name if word.startswith(("/", "~")) else word


def versions() -> dict[str, str]:
    """Return the versions of installed packages that a figure may depend on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Return the CPU's name, with the features that speed up matrix products."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    lines = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    flags = lines.get("flags", "").split()
    useful = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if flag in flags]
    return f"{lines.get('model name', platform.machine())} ({', '.join(useful)})" if useful else lines["model name"]


def load() -> float | None:
    """Return the load average of the last minute; other programs make figures noisy."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def gpus() -> list[str]:
    """Return name, memory and driver of each NVIDIA GPU; empty if there is none."""
    text = nvidia_smi("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return [line.strip() for line in text.splitlines() if line.strip()]


def nvidia_smi(*options: str) -> str:
    """Return nvidia-smi's output; empty if it is absent or fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    try:
        done = subprocess.run([tool, *options], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def in_words(record: dict[str, Any]) -> list[str]:
    """Return the conditions as lines of text to put under a table."""
    shown = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    gpu = "; ".join(record["gpu"]) or "none"
    lines = [
        f"`{record['command']}`",
        f"{record['date']}; {record['processor']}, {record['cores']} cores; GPU {gpu}; "
        f"load before {record['load_before']}; {record['system']}",
        shown,
    ]
    known = {"date", "command", "processor", "cores", "load_before", "gpu", "system", "versions"}
    return lines + [f"{name.replace('_', ' ')}: {value}" for name, value in record.items() if name not in known]


def model_facts(path: Path) -> dict[str, str]:
    """Return name, size and hash of a model file."""
    return {"model": f"{path.name}, {path.stat().st_size / 1e6:.1f} MB, SHA-256 {file_digest(path)[:16]}"}
