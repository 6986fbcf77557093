"""Throughput: what is timed does the work, the whole is judged by its parts, and runs compare."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from mineral_batch.engines.registry import open_backend
from mineral_batch.errors import DataError
from mineral_batch.images.discover import find_sources
from mineral_batch.system import peak_memory_mib
from mineral_bench.cli import main
from mineral_bench.measure import Rounds
from mineral_bench.process.usage import GpuUsage, read_samples
from mineral_bench.studies import throughput as bench

if TYPE_CHECKING:
    from pathlib import Path


def found(decode: float, engine: float, together: float, *, is_shared: bool) -> bench.Throughput:
    names = (bench.DECODE, bench.ENGINE, bench.TOGETHER, bench.YARDSTICK)
    times = {name: np.full(8, value) for name, value in zip(names, (decode, engine, together, 1.0), strict=True)}
    return bench.Throughput(Rounds(times, times, 1, True), 100, np.ones(4), {}, is_shared, GpuUsage(), None)


def test_efficiency_is_against_the_slower_part_or_against_the_sum() -> None:
    assert found(2.0, 3.0, 3.0, is_shared=False).efficiency().value == 1.0
    assert found(2.0, 3.0, 5.0, is_shared=True).efficiency().value == 1.0
    assert found(2.0, 3.0, 6.0, is_shared=False).efficiency().value == 0.5
    assert found(2.0, 3.0, 5.0, is_shared=True).rate(bench.DECODE).value == 50


def test_every_stage_goes_through_all_pictures(model_path: Path, photos: Path) -> None:
    backend = open_backend(model_path, "onnx-cpu")
    try:
        sources = bench.readable(list(find_sources([photos])), backend)
        load = bench.make_load(sources, backend, 4, 2, round_seconds=0, exact=False)
        stages = bench.Stages(backend, load)
        assert len(load.sources) == 4 * 16 * backend.workers
        stages.together()
        assert len(stages.latencies[0]) == stages.batches
        stages.engine()
        assert len(stages.backend.seconds) == 2 * stages.batches
        stages.decode()
    finally:
        backend.close()


def test_unreadable_pictures_are_not_measured_with(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    backend = open_backend(model_path, "onnx-cpu")
    try:
        with pytest.raises(DataError, match="none of these images can be read"):
            bench.readable(list(find_sources([tmp_path])), backend)
    finally:
        backend.close()


def record(times: float, yardstick: float = 1.0, **conditions: Any) -> dict[str, Any]:
    noise = np.random.default_rng(0).normal(1, 0.01, 20)
    seconds = {name: (times * noise).tolist() for name in (bench.DECODE, bench.ENGINE, bench.TOGETHER)}
    seconds[bench.YARDSTICK] = (yardstick * noise).tolist()
    return {
        "figures": {"seconds": seconds, "pictures": 10},
        "conditions": {"date": "2026-01-01", **conditions},
    }


@pytest.mark.parametrize(
    ("times", "verdict"),
    [(1.0, "no change beyond noise"), (0.5, "faster"), (2.0, "slower"), (1.001, "no change beyond noise")],
)
def test_what_changed_beyond_noise_is_said(times: float, verdict: str) -> None:
    table = bench.compare(record(times), record(1.0))
    assert {row[2] for row in table.rows[:3]} == {verdict}
    assert table.rows[3][2] == "no change beyond noise"


def test_a_round_of_more_pictures_is_not_slower() -> None:
    longer = record(2.0)
    longer["figures"]["pictures"] = 20
    assert {row[2] for row in bench.compare(longer, record(1.0)).rows} == {"no change beyond noise"}


def test_a_faster_machine_and_other_conditions_are_named() -> None:
    notes = " ".join(bench.compare(record(0.5, yardstick=0.5, cores=4), record(1.0, cores=2)).notes)
    assert "machine itself was faster" in notes
    assert "conditions differ: cores" in notes


def test_the_command_measures_saves_and_compares(model_path: Path, photos: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    command = ["throughput", str(model_path), str(photos), "--backend", "onnx-cpu", "--seconds", "0"]
    first = CliRunner().invoke(main, [*command, "--json", str(saved)])
    assert first.exit_code == 0, first.output
    figures = json.loads(saved.read_text("utf-8"))["figures"]
    assert figures["pictures_per_second"]["end to end"]["value"] == pytest.approx(
        figures["pictures"] / np.median(figures["seconds"]["end to end"])
    )
    assert figures["batch_seconds"]["p50"] <= figures["batch_seconds"]["p90"] <= figures["batch_seconds"]["p99"]
    again = CliRunner().invoke(main, [*command, "--compare", str(saved)])
    assert again.exit_code == 0, again.output
    assert "Against the saved run" in again.output


def test_a_backend_that_is_not_there_is_one_line(model_path: Path, photos: Path) -> None:
    done = CliRunner().invoke(main, ["throughput", str(model_path), str(photos), "--backend", "abacus"])
    assert done.exit_code == 1
    assert "no engine is called 'abacus'" in done.output


def test_samples_of_the_gpu_are_read() -> None:
    usage = GpuUsage()
    read_samples("97, 1234\n99, 1300\n[N/A], 5\n9", usage)
    assert usage.busy == [97, 99]
    assert usage.in_words() == "GPU busy 98% of the time, up to 1300 MiB in use"
    assert GpuUsage().in_words() == ""


def test_peak_memory_counts_what_was_held() -> None:
    before = peak_memory_mib()
    if before is None:
        pytest.skip("this system does not say")
    held = np.ones(60 * 2**20, np.uint8)
    after = peak_memory_mib()
    assert after is not None
    assert held.sum() > 0
    assert after >= 60
