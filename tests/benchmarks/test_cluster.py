"""Sizing a cluster, and the simulation of one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from mineral_bench.cli import main
from mineral_bench.studies.cost import ImageCost, Machine
from mineral_bench.studies.simulated import steady_rate

PAGE = Path(__file__).parents[2] / "benchmarks/SIZING.md"


def test_a_machine_is_as_fast_as_its_slower_part() -> None:
    cost = ImageCost(core_ms=1, engine_core_ms=9, vcpu_share=0.5, efficiency=1, request_price=0)
    assert cost.rate(Machine("gpu", 2, 100, 32, 1)) == (200, "GPUs")
    assert cost.rate(Machine("few CPUs", 8, 3000, 4, 1)) == (2000, "CPUs, which decode")
    assert cost.rate(Machine("no GPU", 0, 0, 20, 1)) == (1000, "CPUs, which also compute")


def test_the_page_is_what_the_command_prints() -> None:
    result = CliRunner().invoke(main, ["cost"])
    assert result.exit_code == 0, result.output
    rows = re.findall(r"^\|.*\|$", result.output, re.MULTILINE)
    assert len(rows) > 10
    page = PAGE.read_text("utf-8")
    assert [row for row in rows if row not in page] == []


@pytest.mark.parametrize("machine", ["g6", "g6=1,32,2", "g6=0x5,32,2", "g6=1x500,0,2"])
def test_machines_that_cannot_be_meant_are_refused(machine: str) -> None:
    result = CliRunner().invoke(main, ["cost", "--machine", machine])
    assert result.exit_code == 2
    assert "write NAME=GPUSxRATE,VCPUS,PRICE" in " ".join(result.output.split())


def test_the_steady_rate_leaves_out_beginning_and_end() -> None:
    moments = [0.0, 5.0, 9.0, *(10 + 0.5 * index for index in range(20)), 40.0, 50.0, 60.0]
    assert steady_rate(moments, 1) == pytest.approx(2)
    assert steady_rate([0.0, 1.0, 2.0], 1) == 1


@pytest.mark.slow
def test_the_simulation_runs_every_piece_through_the_pipeline(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("pyarrow")
    options = ["--workers", "1", "--workers", "2", "--pieces", "3", "--rate", "2000", "--objects", "4000"]
    result = CliRunner().invoke(main, ["cluster", *options, "--json", str(tmp_path / "found.json")])
    assert result.exit_code == 0, result.output
    assert "A cluster, by workers" in result.output
    assert "| 4,000 |" in result.output
