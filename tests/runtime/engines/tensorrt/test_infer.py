"""The TensorRT engine on fakes of TensorRT, cuda-core and pycuda: batches, copies, graphs, threads."""

from __future__ import annotations

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mineral_batch import BackendError, Predictor

from ....fakes.cuda import CudaError

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_batch import ModelContract

from .conftest import PLAN, Machine, expected, images


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 11])
def test_every_picture_gets_its_answer_whatever_the_batch(
    machine: Machine, engine: Path, contract: ModelContract, batch: int
) -> None:
    backend = machine.open(engine)
    pixels = images(batch, contract)
    for _ in range(3):  # the other lane, then the first one again, with what lay there before
        np.testing.assert_allclose(backend.infer(pixels), expected(pixels, 5), rtol=1e-6)
    backend.close()


def test_a_batch_is_one_copy_one_launch_and_one_wait(machine: Machine, engine: Path, contract: ModelContract) -> None:
    backend = machine.open(engine)
    machine.log.clear()
    backend.infer(images(4, contract))
    assert machine.log == [f"to GPU {4 * 24 * 32 * 3}", "launch", "wait"]
    machine.log.clear()
    backend.infer(images(2, contract))
    assert machine.log == [f"to GPU {2 * 24 * 32 * 3}", "launch", "wait"], "a smaller batch copies only its pictures"


def test_everything_is_allocated_when_it_is_opened(machine: Machine, engine: Path, contract: ModelContract) -> None:
    backend = machine.open(engine, batch_size=8)
    sizes = [line for line in machine.log if line.startswith("allocate")]
    assert sizes == [f"allocate {8 * 24 * 32 * 3}", f"allocate {8 * 5 * 4}"] * backend.workers
    first = machine.log.index("capture")
    assert machine.log[first - 3 : first] == ["execute", f"from GPU {8 * 5 * 4}", "wait"], "run before it is recorded"
    for count in (8, 3, 20):
        backend.infer(images(count, contract))
    assert [line for line in machine.log if line.startswith("allocate")] == sizes


def test_an_engine_whose_copy_cannot_be_captured_goes_on_without_a_graph(
    machine: Machine, engine: Path, contract: ModelContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = machine.cuMemcpyDtoHAsync_v2

    def uncapturable(target: int, memory: int, size: int, stream: int) -> None:
        if stream in machine.capturing:
            raise CudaError("cuMemcpyDtoHAsync_v2", 900)
        copy(target, memory, size, stream)

    monkeypatch.setattr(machine, "cuMemcpyDtoHAsync_v2", uncapturable)
    backend = machine.open(engine)
    assert "without CUDA graph" in backend.device
    pixels = images(6, contract)
    np.testing.assert_allclose(backend.infer(pixels), expected(pixels, 5), rtol=1e-6)


def test_two_threads_use_two_lanes(machine: Machine, engine: Path, contract: ModelContract) -> None:
    backend = machine.open(engine)
    batches = [images(4, contract) + np.uint8(shift) for shift in range(20)]
    with ThreadPoolExecutor(backend.workers) as pool:
        answers = list(pool.map(backend.infer, batches))
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_allclose(answer, expected(batch, 5), rtol=1e-6)


def test_without_graphs_the_answers_are_the_same(machine: Machine, engine: Path, contract: ModelContract) -> None:
    machine.errors["cuStreamBeginCapture_v2"] = 900
    backend = machine.open(engine)
    pixels = images(6, contract)
    np.testing.assert_allclose(backend.infer(pixels), expected(pixels, 5), rtol=1e-6)
    assert "without CUDA graph" in backend.device


def test_an_engine_that_says_it_cannot_be_captured_is_not(machine: Machine, engine: Path) -> None:
    machine.tensorrt.is_capturable = False
    assert "without CUDA graph" in machine.open(engine).device
    assert "capture" not in machine.log


def test_it_says_what_it_is(machine: Machine, engine: Path, contract: ModelContract) -> None:
    backend = machine.open(engine)
    assert backend.device == f"GPU 0 (NVIDIA L4), float16, CUDA by {machine.layer}"
    engine_digest = hashlib.sha256(PLAN).hexdigest()[:12]
    assert backend.version == (
        f"tensorrt 10.13.3.9, float16, engine {engine_digest}, NVIDIA L4 (compute capability 8.9), batches of 4"
    )
    assert (backend.contract, backend.batch_size, backend.workers) == (contract, 4, 2)
    assert backend.buffer(3).shape == (3, 24, 32, 3)


def test_predict_feeds_it(machine: Machine, engine: Path, album: Path) -> None:
    with Predictor(engine, backend="tensorrt") as predictor:
        results = list(predictor.predict([album]))
    assert len(results) == 11
    assert len({float(result.probabilities[0]) for result in results}) == 11


def test_a_failure_of_cuda_is_one_line_and_frees_the_lane(
    machine: Machine, engine: Path, contract: ModelContract
) -> None:
    backend = machine.open(engine)
    machine.errors["cuMemcpyHtoDAsync_v2"] = 700
    with pytest.raises(BackendError, match="CUDA error 700"):
        backend.infer(images(4, contract))
    machine.errors.clear()
    pixels = images(4, contract)
    for _ in range(backend.workers):
        np.testing.assert_allclose(backend.infer(pixels), expected(pixels, 5), rtol=1e-6)
    assert not machine.stack, "the context of the thread is as it was"


def test_tensorrt_for_rtx_compiles_the_kernels_of_a_batch_before_they_are_recorded(
    machine: Machine, rtx_engine: Path
) -> None:
    backend = machine.open(rtx_engine)
    made = [line for line in machine.log if line.startswith("context")]
    assert made == ["context, eager"] * backend.workers


def test_the_kernels_that_it_compiled_are_kept_for_every_batch_size_and_shared(
    machine: Machine, rtx_engine: Path, tmp_path: Path
) -> None:
    machine.open(rtx_engine).close()
    one, other = machine.tensorrt.caches
    assert one is other
    (kept,) = (tmp_path / "cache").rglob("*.bin")
    assert kept.read_bytes() == b"kernels 4"
    machine.open(rtx_engine, batch_size=8).close()
    assert kept.read_bytes() == b"kernels 4 8"
    written = kept.stat().st_ino
    for batch in (4, 8):
        machine.open(rtx_engine, batch_size=batch).close()
        assert machine.tensorrt.caches[-1].batches == {4, 8}
    assert kept.stat().st_ino == written, "there was nothing new to write"
    kept.write_bytes(b"of another driver")
    machine.open(rtx_engine).close()
    assert kept.read_bytes() == b"kernels 4", "what is not taken is written anew"


def test_kernels_that_cannot_be_kept_cost_a_warning(
    machine: Machine, rtx_engine: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("no folder")
    with caplog.at_level(logging.WARNING, logger="mineral_batch"):
        machine.open(rtx_engine).close()
    assert "cannot keep the compiled kernels" in caplog.text
