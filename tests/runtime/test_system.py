"""CPUs by affinity, container quota and environment; memory; how extras are installed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mineral_batch import system
from mineral_batch.errors import DataError
from mineral_batch.system import cpu_count, cpu_flags, peak_memory_mib, pip_command, pip_install, require_packages


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine of 64 CPUs whose /proc and /sys/fs/cgroup are folders of the test's."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(system, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(system, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return write


def test_without_limits_all_cpus_of_the_affinity_mask_count(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_count() == 64
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert cpu_count() == 2


def test_where_there_is_no_affinity_the_machine_s_cpus_count(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert cpu_count() == 12


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("max 100000", 64), ("9900000 100000", 64)],
)
def test_the_quota_of_a_container_counts(machine: Any, quota: str, cpus: int) -> None:
    machine("proc/self/cgroup", "0::/kubepods/pod1\n")
    machine("cgroup/cpu.max", quota)  # the container sees its own group as the root
    assert cpu_count() == cpus


def test_the_smallest_quota_from_the_group_to_the_root_counts(machine: Any) -> None:
    machine("proc/self/cgroup", "0::/user.slice/job.scope\n")
    machine("cgroup/user.slice/cpu.max", "300000 100000")
    machine("cgroup/user.slice/job.scope/cpu.max", "max 100000")
    assert cpu_count() == 3


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_control_groups_of_version_1_count(machine: Any, folder: str) -> None:
    machine("proc/self/cgroup", "7:memory:/x\n4:cpu,cpuacct:/docker/1\n0::/\n")
    machine(f"cgroup/{folder}/cpu.cfs_quota_us", "400000")
    machine(f"cgroup/{folder}/cpu.cfs_period_us", "100000")
    machine(f"cgroup/{folder}/docker/1/cpu.cfs_quota_us", "-1")
    machine(f"cgroup/{folder}/docker/1/cpu.cfs_period_us", "100000")
    assert cpu_count() == 4


@pytest.mark.parametrize(("value", "cpus"), [("4", 4), ("8,2", 8), ("0", 64), ("", 64), ("many", 64), ("100", 64)])
def test_the_environment_s_number_of_threads_is_a_limit(
    machine: Any, monkeypatch: pytest.MonkeyPatch, value: str, cpus: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert cpu_count() == cpus


def test_peak_memory_is_this_process_s_own(machine: Any) -> None:
    machine("proc/self/status", "VmPeak:\t 9 kB\nVmHWM:\t  204800 kB\n")
    assert peak_memory_mib() == 200.0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say it")
def test_peak_memory_without_proc_is_the_system_s(machine: Any) -> None:
    peak = peak_memory_mib()
    assert peak is not None
    assert 5 < peak < 100_000


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux only")
def test_cpu_flags_are_words() -> None:
    assert all(flag == flag.strip() and " " not in flag for flag in cpu_flags())


@pytest.fixture
def plain_pip() -> None:
    """Nothing: here the pip that is named is tested."""


@pytest.fixture
def installed_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[object], Path]]:
    """Set what pip has recorded about the package's origin; the answer is a checkout, empty as yet."""
    checkout = tmp_path / "a checkout"
    checkout.mkdir()
    monkeypatch.chdir(tmp_path)

    def record(url: dict[str, Any] | None) -> Path:
        text = json.dumps(url).replace("CHECKOUT", checkout.as_uri()) if url else None
        monkeypatch.setattr(metadata, "distribution", lambda _: SimpleNamespace(read_text={DIRECT: text}.__getitem__))
        system._origin.cache_clear()
        return checkout

    yield record
    system._origin.cache_clear()


DIRECT = "direct_url.json"
FROM_CHECKOUT = {"url": "CHECKOUT", "dir_info": {"editable": True}}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (None, "mineral-batch[cpu]"),
        ({"url": "file:///a.whl", "archive_info": {}}, "mineral-batch[cpu]"),
        (FROM_CHECKOUT, "CHECKOUT[cpu]"),
        ({"url": "file:///no/such/folder", "dir_info": {}}, ".[cpu]"),
    ],
)
def test_a_hint_names_the_checkout_that_the_package_came_from(
    installed_from: Callable[[object], Path], record: dict[str, Any] | None, expected: str
) -> None:
    checkout = installed_from(record)
    assert pip_install("cpu").endswith(f" install '{expected.replace('CHECKOUT', str(checkout))}'")


def test_a_hint_keeps_to_the_versions_that_were_tested(
    installed_from: Callable[[object], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = installed_from(FROM_CHECKOUT)
    (checkout / "constraints.txt").touch()
    assert "-c" not in pip_install("cpu")  # the line would be long
    monkeypatch.chdir(checkout)
    system._origin.cache_clear()
    assert pip_install("cpu").endswith(" install -c constraints.txt '.[cpu]'")
    monkeypatch.setattr(sys, "platform", "win32")  # whose cmd.exe takes a single quote for a letter
    assert pip_install("cpu").endswith(' install -c constraints.txt ".[cpu]"')


@pytest.mark.skipif(sys.platform == "win32", reason="scripts without .exe")
@pytest.mark.parametrize(
    ("on_path", "run_from", "expected"),
    [
        ("env/bin", ".", "pip"),
        ("other/bin", ".", "env/bin/python -m pip"),
        ("other/bin", "env", "bin/python -m pip"),
        ("other/bin", "other", '"TMP/env/bin/python" -m pip'),
        ("empty", ".", "env/bin/python -m pip"),
    ],
)
def test_a_hint_calls_the_pip_of_this_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_path: str, run_from: str, expected: str
) -> None:
    """`.venv/bin/mineral-batch` in a shell whose pip is the system's."""
    here = tmp_path / "my photos"
    for name in ("env", "other"):
        (here / name / "bin").mkdir(parents=True)
        (here / name / "bin" / "pip").touch(0o755)
    (here / "env" / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(here / "env" / "bin" / "python"))
    monkeypatch.setenv("PATH", str(here / on_path))
    monkeypatch.chdir(here / run_from)
    assert pip_command() == expected.replace("TMP", str(here))


def test_packages_that_are_missing_are_named_with_what_installs_them() -> None:
    require_packages("int8", "int8", "json")
    with pytest.raises(DataError, match=r"^int8 needs .* not installed \(no_such, nor_this\): .*install .*\[int8\]"):
        require_packages("int8", "int8", "json", "no_such", "nor_this")
