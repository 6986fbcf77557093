"""What this machine gives the process: CPUs and memory; and how the package was installed."""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mineral_batch.errors import DataError

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
# The most that glibc allows for blocks that are taken from the heap.
_LARGEST_BLOCK = 32 * 2**20
_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


def cpu_count() -> int:
    """Return how many CPUs this process may use, at least 1.

    The smallest of the CPUs of the machine, the process's affinity mask, the CPU quota of its container (cgroup,
    rounded up) and `OMP_NUM_THREADS`, by which cluster schedulers and users limit a process's threads. One decode
    thread per CPU is enough, because Pillow releases the interpreter's lock.
    """
    limits = [_affinity(), _cgroup_cpus(), _omp_num_threads()]
    return max(1, min(limit for limit in limits if limit is not None))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _omp_num_threads() -> int | None:
    """The variable may be a list, one number per nesting level: the first counts."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() and int(first) > 0 else None


def _cgroup_cpus() -> int | None:
    """The CPU quota of the process's cgroups (version 2 or 1), rounded up; None without one.

    A quota holds for everything below it, so the smallest from the process's own group to the root counts.
    """
    quotas = [quota for folder in _cgroup_folders() if (quota := _quota(folder)) is not None]
    return math.ceil(min(quotas)) if quotas else None


def _cgroup_folders() -> Iterator[Path]:
    """The folders of the process's CPU control groups, and those above them, in which quotas may lie."""
    for line in _read(_PROC / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            root = _CGROUP
        elif "cpu" in controllers.split(","):
            root = _CGROUP / controllers if (_CGROUP / controllers).is_dir() else _CGROUP / "cpu"
        else:
            continue
        # In a container the path may be the host's, which does not exist here; the root then is the container's own.
        own = Path(group.lstrip("/"))
        yield from (root / part for part in (own, *own.parents))


def _quota(folder: Path) -> float | None:
    """CPUs that one control group may use."""
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    try:
        cpus = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", or no such file
        return None
    return cpus if cpus > 0 else None  # version 1 writes -1 for no quota


def keep_freed_memory() -> bool:
    """Have glibc keep memory that is freed for the next allocation, instead of giving it back to the kernel.

    Large buffers that come and go in every step (activations, decoded images) otherwise cost a page fault for every
    4 KiB, each time. Measured on EfficientNet-Lite0 at 224 pixels, forward and backward on one core: 7,000 to 20,000
    faults and 17 to 47 ms of the kernel's time an image without, none with it. The process then holds on to its peak.

    Returns:
        Whether the C library can be told; false outside Linux with glibc.
    """
    return _tell_malloc((_M_TRIM_THRESHOLD, 2**31 - 1), (_M_MMAP_MAX, 0))


def keep_some_freed_memory() -> bool:
    """Have glibc keep up to 64 MiB of freed memory in each thread that decodes: a decoded photograph's.

    Measured on JPEGs of 12 megapixels: 45 ms of CPU time an image, 55 ms if every buffer is new to the kernel.

    Returns:
        See `keep_freed_memory`.
    """
    return _tell_malloc((_M_TRIM_THRESHOLD, 2 * _LARGEST_BLOCK), (_M_MMAP_THRESHOLD, _LARGEST_BLOCK))


def _tell_malloc(*options: tuple[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, value) for option, value in options)


def return_freed_memory() -> None:
    """Have glibc give memory that is free back to the kernel, that of other threads' heaps included."""
    if sys.platform.startswith("linux") and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def peak_memory_mib() -> float | None:
    """Return the most memory that this process has held, MiB; None where the system does not say.

    Linux counts in `ru_maxrss` also what the parent held when it started this process; VmHWM does not.
    """
    found = re.search(r"^VmHWM:\s*(\d+) kB", _read(_PROC / "self" / "status"), re.MULTILINE)
    if found:
        return int(found[1]) / 2**10
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@cache
def available_memory() -> int | None:
    """Return the bytes that this process can still take: of the machine and of its container; None if unknown."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _read(_PROC / "meminfo"), re.MULTILINE)
    limits = [int(found[1]) * 1024] if found else []
    for folder in _cgroup_folders():
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            maximum, used = _read(folder / limit), _read(folder / usage)
            if maximum.isdigit() and used.isdigit():
                limits.append(max(0, int(maximum) - int(used)))
    return min(limits, default=None)


def cpu_name() -> str:
    """Return the CPU's model name as Linux tells it; empty elsewhere."""
    return _cpuinfo("model name")


@cache
def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of the CPU by Linux's names (`avx2`, `avx512_vnni`, ...); empty elsewhere."""
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features")).split())


def _cpuinfo(key: str) -> str:
    found = re.search(rf"^{key}\s*:\s*(.*)$", _read(_PROC / "cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else ""


def _read(path: Path) -> str:
    """The text of a file of the kernel's; empty if there is none."""
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def require_packages(who: str, extra: str, *names: str) -> None:
    """Refuse to start without packages that an optional part of the program needs.

    Args:
        who: the command or option that needs them, for the message.
        extra: that brings them.
        *names: modules, as they are imported.

    Raises:
        DataError: naming those that are missing and the command that installs them.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise DataError(f"{who} needs packages that are not installed ({', '.join(missing)}): {pip_install(extra)}")


def pip_install(extra: str) -> str:
    """Return the command that adds one of the package's extras, from where the package itself came.

    >>> pip_install("cpu")                                                # doctest: +SKIP
    "pip install -c constraints.txt '.[cpu]'"
    """
    origin = _origin()
    pinned = "-c constraints.txt " if origin == "." and Path("constraints.txt").is_file() else ""
    mark = '"' if sys.platform == "win32" else "'"
    return f"{pip_command()} install {pinned}{mark}{origin}[{extra}]{mark}"


def pip_command() -> str:
    """Return how to call the pip of this interpreter from the current folder.

    `pip` where that is the one on PATH; else the interpreter's own, as after `.venv/bin/mineral-batch` without an
    activated environment, where `pip` would install into the system's Python.
    """
    return "pip" if _is_own_pip_on_path() else f"{_quoted(_from_here(Path(sys.executable)))} -m pip"


def _is_own_pip_on_path() -> bool:
    if not sys.executable:  # embedded: there is nothing better to name
        return True
    folders = {Path(folder).resolve() for folder in (sysconfig.get_path("scripts"), Path(sys.executable).parent)}
    found = shutil.which("pip")
    return found is not None and Path(found).parent.resolve() in folders


def _from_here(path: Path) -> str:
    """The path, relative where it lies below the current folder; a link, as in a virtual environment, is kept."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _quoted(path: str) -> str:
    """For the shell, where it needs that."""
    return f'"{path}"' if " " in path else path


@cache
def _origin() -> str:
    """The checkout that the package was installed from (PEP 610), `.` if that is the current folder; else its name."""
    try:
        text = metadata.distribution("mineral-batch").read_text("direct_url.json")
        record = json.loads(text or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return "."  # imported from a checkout that was not installed
    if "dir_info" not in record:
        return "mineral-batch"
    checkout = Path(url2pathname(urlsplit(record["url"]).path))
    return "." if checkout == Path.cwd() or not checkout.is_dir() else str(checkout)
