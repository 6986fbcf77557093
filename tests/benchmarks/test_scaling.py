"""Costs are fitted right, and a machine is sized by them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mineral_batch.engines.registry import open_backend
from mineral_batch.images.processes.pool import is_supported
from mineral_batch.model.contract import InputSpec
from mineral_batch.system import cpu_count
from mineral_batch.types import Image
from mineral_bench.measure import Plan, Times
from mineral_bench.process.isolated import Isolated
from mineral_bench.process.runner import Runner
from mineral_bench.studies import memory, scaling

SHORT = Plan(least=2, most=2, seconds=0, warm_up=1)


@given(st.floats(0.001, 10), st.floats(0.001, 10))
def test_a_line_is_found_again(fixed: float, each: float) -> None:
    amounts = (1, 2, 8, 64)
    line = scaling.fit(amounts, [fixed + each * amount for amount in amounts])
    assert (line.fixed, line.each) == pytest.approx((fixed, each), rel=1e-6)
    assert line.worst < 1e-6
    at = line.saturates_at
    assert at / line(at) == pytest.approx(0.95 / each)


def test_small_amounts_count_as_much_as_large_ones() -> None:
    line = scaling.fit((1, 10, 1000), (2.0, 11.0, 1300.0))
    assert line(1) == pytest.approx(2.0, rel=0.2)


def test_what_a_day_needs() -> None:
    shared, gpu = scaling.Sizing(0.03, 0.07, is_gpu=False), scaling.Sizing(0.03, 0.07, is_gpu=True)
    per_day = 86_400 * 0.7
    assert shared.needs(per_day) == pytest.approx((0.1, 0.0))
    assert gpu.needs(per_day) == pytest.approx((0.03, 0.07))
    assert "0.100" in shared.table([round(per_day)], 12).markdown()


def test_every_study_runs(model_path: Path) -> None:
    backend = open_backend(model_path, "onnx-cpu")
    try:
        batches = scaling.by_batch(backend, SHORT, (1, 4))
        need = scaling.sizing(batches, batches, backend, 1)
    finally:
        backend.close()
    assert batches.amounts == (1, 4)
    assert not need.is_gpu
    counts = scaling.by_count(model_path, "onnx-cpu", SHORT, (2, 6))
    assert counts.seconds[0] > 0
    assert "6" in counts.table().markdown()


def test_the_time_of_each_image_stands_beside_its_own_megapixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that gives a tenth of a second, and one more for each megapixel that was decoded."""

    def timed(decode: Callable[[], Image]) -> Times:
        image = decode()
        return Times(0.1 + image.width * image.height / 1e6, 1.0)

    monkeypatch.setattr("mineral_bench.measure.timed", timed)
    monkeypatch.setattr(scaling, "_DECODED", ((64, 48), (640, 480), (1600, 1200)))
    found = scaling.by_picture_size(InputSpec(height=32, width=32), SHORT)
    assert (found.line.fixed, found.line.each) == pytest.approx((0.1, 1.0))


def test_fewer_cores_are_really_fewer(model_path: Path) -> None:
    found = scaling.by_cores(model_path, "onnx-cpu", SHORT, pictures=4)
    if cpu_count() < 2:
        assert found is None
        return
    assert found is not None
    assert found.cores[0] == 1
    assert found.cores[-1] == cpu_count()
    assert 0 <= found.serial <= 1


def test_a_runner_keeps_to_its_cores(model_path: Path) -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot confine a process")
    with Isolated(partial(Runner, model_path, "onnx-cpu", cores=1)) as runner:
        assert runner.call("cores").value == 1


def test_amdahls_share() -> None:
    rates = tuple(1 / (0.25 + 0.75 / n) for n in (1, 2, 4))
    assert "times one core" in scaling.Cores((1, 2, 4), rates, 0.25, "").table().markdown()
    assert "limit of 4 times one core" in scaling.Cores((1, 2, 4), rates, 0.25, "").table().markdown()


@pytest.mark.slow
@pytest.mark.skipif(not is_supported(), reason="decode processes need POSIX")
def test_memory_of_a_run_includes_its_decode_processes(model_path: Path, photos: Path) -> None:
    threads, processes = (
        memory.measure(model_path, (30,), [photos], "onnx-cpu", decode_processes=count)[0] for count in (0, 2)
    )
    if Path("/proc/self/smaps_rollup").exists():
        # Each holds the modules of an interpreter, NumPy and Pillow.
        assert processes.mib_in_all > threads.mib_in_all + 20
    rows = memory.table([memory.Peak(30, 50.0, 0.0, 1.0)]).rows
    assert rows[0][1:3] == ("", ""), "a system that does not say"


def test_memory_is_that_of_whole_runs(model_path: Path, photos: Path) -> None:
    peaks = memory.measure(model_path, (3, 30), [photos], "onnx-cpu")
    assert [peak.images for peak in peaks] == [3, 30]
    assert all(peak.mib > 20 for peak in peaks)
    assert "+0.0%" in memory.table(peaks).markdown()
    assert np.isfinite(peaks[1].seconds)
