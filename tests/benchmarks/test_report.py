"""Tables for people, JSON for the next run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mineral_batch.errors import DataError
from mineral_batch.results.seals import sealed_markdown
from mineral_bench.conditions import conditions
from mineral_bench.measure import Estimate
from mineral_bench.report import BenchmarkReport, Table, load_figures

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> BenchmarkReport:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/mineral-bench", "decode", "/home/me/secret/photos", "--size", "8"])
    table = Table("Speed", ("what", "rate"), [("a|b", 1234.5), ("none", None)], ["A note."])
    return BenchmarkReport(
        "decode", conditions(), {"rate": Estimate(2, 1, 3), "seconds": np.array([1.5, 2.5])}, [table]
    )


def test_a_table_is_markdown(report: BenchmarkReport) -> None:
    lines = report.markdown().splitlines()
    assert lines[:6] == [
        "### Speed",
        "",
        "| what | rate |",
        "| --- | --- |",
        "| a\\|b | 1234 |",
        "| none |  |",
    ]
    assert "A note." in lines


def test_the_conditions_tell_no_folders(report: BenchmarkReport) -> None:
    assert report.conditions["command"] == "mineral-bench decode photos --size 8"
    assert report.conditions["versions"]["numpy"] == np.__version__
    assert report.conditions["cores"] >= 1
    assert report.conditions["processor"]
    assert "secret" not in report.json() + report.markdown()


def test_figures_come_back_from_the_file(
    report: BenchmarkReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "saved.json"
    report.write(path, tmp_path / "saved.md")
    saved = load_figures(path, "decode")
    assert saved["figures"] == {"rate": {"value": 2, "low": 1, "high": 3}, "seconds": [1.5, 2.5]}
    assert (tmp_path / "saved.md").read_text("utf-8") == sealed_markdown(report.markdown())
    assert report.markdown() in capsys.readouterr().out


def test_another_benchmarks_file_is_refused(report: BenchmarkReport, tmp_path: Path) -> None:
    path = tmp_path / "saved.json"
    path.write_text(report.json(), "utf-8")
    with pytest.raises(DataError, match="mineral-bench throughput --json"):
        load_figures(path, "throughput")


@pytest.mark.parametrize("content", ["[]", "{", json.dumps({"benchmark": "decode", "schema": 99})])
def test_what_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "saved.json"
    path.write_text(content, "utf-8")
    with pytest.raises(DataError, match=r"saved\.json"):
        load_figures(path, "decode")


def test_an_unwritable_file_is_one_line(report: BenchmarkReport, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot write"):
        report.write(tmp_path / "absent" / "saved.json", None)
