"""Which GPU it is, and its clocks, by nvidia-smi."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from mineral_bench.cli import main
from mineral_bench.gpu import machine

if TYPE_CHECKING:
    from pathlib import Path


NVIDIA_SMI = """#!/bin/sh
case "$*" in
*clocks_event_reasons*) echo 'Field "clocks_event_reasons.active" is not a valid field to query.'; exit 2;;
*name,uuid*) echo 'NVIDIA H200, GPU-1';;
*clocks.sm,*) echo "$*" >> "$0.asked"; echo '1980, 2619, 690.5, 55, 99, 0x4';;
*) echo 700.00;;
esac
"""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "bin" / "nvidia-smi"
    path.parent.mkdir()
    path.write_text(NVIDIA_SMI)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    return path


def test_the_clocks_are_read_while_a_stage_runs(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_SECONDS", 0.01)
    with machine.Watch(is_dry=False) as watch:
        deadline = time.monotonic() + 300
        while len(watch.readings) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    found = machine.summary(watch.readings)
    assert (found["sm_mhz_median"], found["watts_least"], found["held_back_by"]) == (1980.0, 690.5, ["power limit"])
    asked = nvidia_smi.with_name("nvidia-smi.asked").read_text()
    assert "--id=0 --query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu,clocks_throttle" in asked
    assert machine.where(is_dry=False).items() >= {"gpu": "NVIDIA H200", "uuid": "GPU-1"}.items()
    assert machine.where(is_dry=True)["gpu"] == "none"
    assert machine.described()["nvidia-smi power.limit"] == "700.00"


def test_clocks_count_while_the_gpu_is_busy() -> None:
    fields = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu", "reasons")
    rows = [
        ("345", "2619", "70.1", "30", "0", "0x1"),
        ("1980", "2619", "[N/A]", "55", "99", "0x0"),
        ("1755", "2619", "699.0", "61", "100", "0x44"),
    ]
    found = machine.summary([dict(zip(fields, row, strict=True)) for row in rows])
    clocks = {"sm_mhz_least": 1755.0, "sm_mhz_median": 1867.5, "memory_mhz_least": 2619.0, "memory_mhz_median": 2619.0}
    power = {"watts_least": 699.0, "watts_median": 699.0, "celsius_most": 61.0}
    held = ["power limit", "temperature, by hardware"]
    assert found == {"readings": 2, **clocks, **power, "held_back_by": held}
    assert machine.summary([]) == {}


def test_without_nvidia_smi_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with machine.Watch(is_dry=False) as watch:
        pass
    assert watch.readings == []
    assert machine.where(is_dry=False)["uuid"] == "none"


def test_an_nvidia_smi_that_takes_too_long_is_asked_again_and_is_no_other_gpu(
    tmp_path: Path, nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_PATIENCE", 2.0)
    once = f'#!/bin/sh\n[ -e "$0.woken" ] || {{ touch "$0.woken"; exec sleep 60; }}\n{NVIDIA_SMI}'
    nvidia_smi.write_text(once)
    assert machine.where(is_dry=False)["uuid"] == "GPU-1"
    assert nvidia_smi.with_name("nvidia-smi.woken").exists()
    monkeypatch.setattr(machine, "_PATIENCE", 0.1)
    nvidia_smi.write_text("#!/bin/sh\nexec sleep 60\n")
    kept = tmp_path / "stages" / "chip.json"
    kept.parent.mkdir()
    kept.write_text('{"status": "done", "where": {"uuid": "GPU-1"}}')
    done = CliRunner().invoke(main, ["gpu", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert done.output.startswith("Error: nvidia-smi did not say which GPU this is, 3 times")
    assert kept.read_text() == '{"status": "done", "where": {"uuid": "GPU-1"}}'
    assert machine.described().keys() >= {"python"}, "clocks are not what figures belong to"


LISTING = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa1111-0000)
  MIG 1g.10gb     Device  0: (UUID: MIG-bbbb2222-0000)
  MIG 1g.10gb     Device  1: (UUID: MIG-cccc3333-0000)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-dddd4444-0000)
  MIG 3g.40gb     Device  0: (UUID: MIG-eeee5555-0000)
"""


@pytest.mark.parametrize(
    ("visible", "gpu"),
    [
        ("0", "0"),
        ("GPU-dddd4444-0000", "GPU-dddd4444-0000"),
        ("GPU-dddd", "GPU-dddd4444-0000"),
        ("MIG-cccc3333-0000", "GPU-aaaa1111-0000"),
        ("MIG-eeee5555", "GPU-dddd4444-0000"),
        ("MIG-GPU-aaaa1111-0000/7/0", "GPU-aaaa1111-0000"),
        ("MIG-absent", "MIG-absent"),
    ],
)
def test_a_mig_slice_is_queried_by_the_gpu_that_it_is_part_of(visible: str, gpu: str) -> None:
    """nvidia-smi --id accepts no slice, and no shortened UUID."""
    assert machine.gpu_id(visible, LISTING) == gpu


def test_figures_of_a_mig_slice_belong_to_the_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bin" / "nvidia-smi"
    path.parent.mkdir()
    path.write_text(
        f"#!/bin/sh\ncase \"$*\" in\n-L) cat <<'END'\n{LISTING}END\n;;\n"
        "--id=GPU-dddd4444-0000\\ *name,uuid*) echo 'NVIDIA H100 80GB HBM3, GPU-dddd4444-0000';;\n*) exit 6;;\nesac\n"
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-eeee5555-0000,1")
    where = machine.where(is_dry=False)
    assert where["gpu"] == "NVIDIA H100 80GB HBM3, MIG 3g.40gb"
    assert where["uuid"] == "MIG-eeee5555-0000"
