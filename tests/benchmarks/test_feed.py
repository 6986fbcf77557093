"""Feeding a null engine: what is measured, what limits it, what is extrapolated."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from mineral_batch.images.processes.pool import is_supported
from mineral_batch.system import pip_install
from mineral_bench.cli import main
from mineral_bench.measure import Estimate, Plan, Rounds
from mineral_bench.process import interpreter_lock
from mineral_bench.process.interpreter_lock import count_samples
from mineral_bench.studies import feed

if TYPE_CHECKING:
    from pathlib import Path

SHORT = Plan(least=1, most=1, seconds=0, warm_up=1)


@pytest.fixture
def no_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter_lock, "find_py_spy", lambda: None)


@pytest.mark.slow
def test_threads_processes_and_other_loaders_are_measured(photos: Path, tmp_path: Path, no_sampler: None) -> None:
    saved = tmp_path / "feed.json"
    words = ["feed", photos, "--side", 32, "--images", 30, "--seconds", 0, "--cores", 8, "--json", saved]
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    figures: dict[str, Any] = json.loads(saved.read_text("utf-8"))["figures"]
    measured = {one["way"] for one in figures["feeds"]}
    assert measured >= {feed.THREADS, "PyTorch DataLoader, the same decoder", "decoded before, memory-mapped"}
    assert (feed.PROCESSES in measured) == is_supported()
    assert {one["cores"] for one in figures["feeds"]} >= {1}
    assert all(one["rate"]["value"] > 0 and one["cpu"] > 0 for one in figures["feeds"])
    assert figures["extrapolated"][feed.THREADS]["8"] > 0
    assert (
        f"The lock was not measured for {feed.THREADS}: py-spy is not installed: {pip_install('bench')}." in done.output
    )


def test_the_engine_takes_the_time_of_its_rate() -> None:
    engine = feed.NullEngine(8, rate=1000.0)
    slept: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed.time, "sleep", slept.append)
        assert engine.infer(np.zeros((16, 8, 8, 3), np.uint8)).shape == (16, 36)
    assert slept == [pytest.approx(0.016)]


def result(*feeds: feed.Feed) -> feed.FeedResult:
    return feed.FeedResult(feeds, 100, Rounds({"": np.ones(1)}, {"": np.ones(1)}, 1, True), ())


def rate(value: float) -> Estimate:
    return Estimate(value, value, value)


def test_the_least_of_cores_lock_and_engine_is_extrapolated() -> None:
    found = result(feed.Feed("ours", 1, rate(480), cpu=0.002), feed.Feed("ours", 2, rate(800), cpu=0.002, held=0.0005))
    assert feed.predicted(found, "ours", 2) == 1000, "by CPU time"
    assert feed.predicted(found, "ours", 32) == 2000, "by the lock"
    assert feed.predicted(found, "ours", 32, rate=1500) == 1500, "by the engine"
    assert feed.errors(found, "ours") == pytest.approx((0.0, 0.25)), "1000 predicted, 800 measured"
    assert feed.errors(result(feed.Feed("ours", 1, rate(480), cpu=0.002)), "ours") is None


def test_a_loader_that_is_not_installed_is_named(photos: Path, no_sampler: None) -> None:
    paths = tuple(str(path) for path in sorted(photos.iterdir()))
    found = feed.measure(feed.FeedLoad(paths, 16), SHORT, [feed.THREADS, "an abacus"])
    assert {one.way for one in found.feeds} == {feed.THREADS}
    assert found.notes[0].startswith("Not here: an abacus: ")


def test_samples_with_the_lock_are_counted() -> None:
    assert count_samples("main (a.py:1);run (b.py:2) 12\nmain (a.py:1) 3\n\nnothing\n") == 15


def test_without_an_image_there_is_nothing_to_feed(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["feed", str(tmp_path)])
    assert done.exit_code == 1
    assert done.output.startswith("Error: ")
