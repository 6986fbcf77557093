"""`--decode auto`: what it measures and what it chooses."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mineral_batch import Predictor, decoder_choice
from mineral_batch.engines.base import Device, EngineInfo
from mineral_batch.images.decoder import CpuDecoder, DecodeOptions
from mineral_batch.images.discover import find_sources
from mineral_batch.images.gpu.decoder import GpuDecoder
from mineral_batch.results import run as runs

from ....fakes.nvimgcodec import GPUS
from .conftest import SPEC

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from ....fakes.nvimgcodec import Machine


@pytest.mark.parametrize("faster", ["cpu", "gpu"])
def test_auto_measures_once_and_a_run_that_goes_on_keeps_its_choice(
    machine: Machine,
    model_path: Path,
    jpegs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    faster: str,
) -> None:
    rates = {"cpu": 30.0, "gpu": 20.0}
    rates[faster] = 90.0
    monkeypatch.setattr(decoder_choice, "_decode_rate", lambda decoder, contents, threads: rates[decoder.name])

    def run(folder: str, stop_after: int | None = None) -> str:
        seen: list[Any] = []
        with Predictor(model_path, backend="onnx-cpu", decode="auto", batch_size=1) as predictor:
            runs.run(
                predictor,
                [jpegs],
                tmp_path / folder,
                seen=seen.append,
                stop=lambda: stop_after is not None and len(seen) >= stop_after,
            )
            return predictor.decoder_choice

    with caplog.at_level(logging.WARNING):
        assert f"the CPU decodes {rates['cpu']:.0f} large JPEGs a second, the GPU {rates['gpu']:.0f}" in run("whole")
    assert len(caplog.records) == 1
    run("resumed", stop_after=2)
    rates["cpu"], rates["gpu"] = rates["gpu"], rates["cpu"]  # another day
    assert run("resumed").endswith(", as before")
    whole, resumed = ((tmp_path / folder / "predictions.csv").read_bytes() for folder in ("whole", "resumed"))
    assert whole == resumed
    message = json.loads((tmp_path / "resumed" / "run.json").read_text())["decoder"]
    assert message["name"] == faster


def test_auto_takes_the_processor_where_there_is_nothing_to_choose(
    machine: Machine, model_path: Path, album: Path, jpegs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choice(folder: Path) -> str:
        with Predictor(model_path, backend="onnx-cpu", decode="auto") as predictor:
            assert len([*predictor.predict([folder])]) == len([*folder.iterdir()])
            assert predictor.decoder.name == "cpu"
            return predictor.decoder_choice

    assert choice(album).endswith("fewer than 4 large JPEGs among the first 64 images")
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    assert "needs nvImageCodec" in choice(jpegs)


class Engine:
    """An engine on a GPU that takes some time for a batch."""

    info = EngineInfo("a fake", "float32", Device("gpu", GPUS[0]))
    workers = 2

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.sizes: list[int] = []

    def buffer(self, pictures: int) -> NDArray[np.uint8]:
        return np.zeros((pictures, 24, 32, 3), np.uint8)

    def infer(self, pixels: NDArray[np.uint8]) -> None:
        self.sizes.append(len(pixels))
        time.sleep(self.seconds)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images a second that the decoders are said to reach, however busy this machine is."""
    given = {"cpu": 1000.0, "gpu": 2000.0}
    monkeypatch.setattr(decoder_choice, "_decode_rate", lambda decoder, contents, threads: given[decoder.name])


def choose(jpegs: Path, engine: Any, batch_size: int) -> tuple[str, str]:
    """Which decoder, and why."""
    chosen, why = decoder_choice.choose_decoder(find_sources([jpegs]), DecodeOptions(SPEC), None, engine, batch_size)
    chosen.close()
    return chosen.name, why


def test_auto_takes_the_processor_where_the_engine_takes_no_more(machine: Machine, jpegs: Path, rates: None) -> None:
    slow = Engine(seconds=0.1)
    name, why = choose(jpegs, slow, batch_size=1)
    assert name == "cpu"
    assert "the CPU decodes 1000 large JPEGs a second, the engine needs " in why
    assert len(slow.sizes) > slow.workers, "once before, to be warm"


def test_auto_measures_both_ways_where_the_engine_waits(machine: Machine, jpegs: Path, rates: None) -> None:
    fast = Engine()
    name, why = choose(jpegs, fast, batch_size=10_000)
    assert set(fast.sizes) == {10_000}, "whole batches"
    assert why.endswith("the CPU decodes 1000 large JPEGs a second, the GPU 2000")
    assert name == "gpu"


def test_auto_measures_both_ways_where_the_engine_shares_the_processor(
    machine: Machine, jpegs: Path, rates: None
) -> None:
    """There even a processor that decodes fast enough has better things to do."""
    engine = Engine()
    engine.info = EngineInfo("a fake", "float32")
    name, _ = choose(jpegs, engine, batch_size=1)
    assert engine.sizes == []
    assert name == "gpu"


def test_auto_takes_the_processor_where_the_gpu_is_lost_meanwhile(machine: Machine, jpegs: Path) -> None:
    machine.lists_left = 2 * 4  # what both lanes are tried on
    name, why = choose(jpegs, Engine(), batch_size=10_000)
    assert name == "cpu"
    assert why.endswith("or --decode cpu")


def test_auto_really_decodes_what_it_measures(machine: Machine, jpegs: Path) -> None:
    contents = [path.read_bytes() for path in sorted(jpegs.glob("0[0-2].jpg"))]
    decoder = GpuDecoder(SPEC, CpuDecoder(SPEC))
    machine.batches.clear()
    assert decoder_choice._decode_rate(decoder, contents, threads=2) > 0
    assert sorted({content for batch in machine.batches for content in batch}) == sorted(contents)
    decoder.close()
