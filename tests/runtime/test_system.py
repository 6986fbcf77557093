"""CPUs by affinity, container quota and environment; memory; how extras are installed."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from mineral_batch import system
from mineral_batch.system import cpu_count, cpu_flags, peak_memory_mib, pip_install


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


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (None, "pip install 'mineral-batch[cpu]'"),
        ({"url": "file:///a.whl", "archive_info": {}}, "pip install 'mineral-batch[cpu]'"),
        ({"url": "CHECKOUT", "dir_info": {"editable": True}}, "pip install 'CHECKOUT[cpu]'"),
        ({"url": "HERE", "dir_info": {}}, "pip install '.[cpu]'"),
        ({"url": "file:///no/such/folder", "dir_info": {}}, "pip install '.[cpu]'"),
    ],
)
def test_a_hint_names_the_checkout_that_the_package_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: dict[str, Any] | None, expected: str
) -> None:
    class Distribution:
        @staticmethod
        def read_text(name: str) -> str | None:
            assert name == "direct_url.json"
            places = {"CHECKOUT": tmp_path.as_uri(), "HERE": Path.cwd().as_uri()}
            return record and json.dumps({**record, "url": places.get(record["url"], record["url"])})

    monkeypatch.setattr(metadata, "distribution", lambda _: Distribution)
    system._origin.cache_clear()
    try:
        assert pip_install("cpu") == expected.replace("CHECKOUT", str(tmp_path))
    finally:
        system._origin.cache_clear()
