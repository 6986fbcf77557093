"""Order, isolation, bounded look-ahead and clean endings of the pipeline, on a made engine and on ONNX Runtime."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mineral_batch import BackendError, Failure, InputSpec, ModelContract, Prediction
from mineral_batch.engines.registry import open_backend
from mineral_batch.images.discover import find_sources
from mineral_batch.images.processes.pool import DecodeProcesses, is_supported
from mineral_batch.pipeline import run, slots

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from mineral_batch.types import Source

SPEC = InputSpec(height=24, width=32)


class FakeBackend:
    """Answers with the mean and the first pixel of each picture; remembers how it was called."""

    name = "fake"
    device = "memory"
    version = "1"
    batch_size = 4
    workers = 1

    def __init__(self) -> None:
        self.contract = ModelContract(labels=("mean", "first"), thresholds=(0.5, 0.5), input=SPEC)
        self.sizes: list[int] = []
        self.threads: set[int] = set()
        self.pinned: list[tuple[int, ...]] = []

    def pin(self, pixels: NDArray[np.uint8]) -> None:
        self.pinned.append(pixels.shape)

    def buffer(self, pictures: int) -> NDArray[np.uint8]:
        return np.zeros((pictures, 24, 32, 3), np.uint8)

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert pixels.dtype == np.uint8
        assert pixels.shape[1:] == (24, 32, 3)
        self.sizes.append(len(pixels))
        self.threads.add(threading.get_ident())
        scaled = pixels.reshape(len(pixels), -1).astype(np.float32) / 255
        return np.stack([scaled.mean(axis=1), scaled[:, 0]], axis=1)

    def close(self) -> None: ...


def answers(results: list[Prediction | Failure]) -> NDArray[np.float32]:
    """(N, L) probabilities; a row of NaN for a failure."""
    first = next(r for r in results if isinstance(r, Prediction))
    blank = np.full_like(first.probabilities, np.nan)
    return np.stack([r.probabilities if isinstance(r, Prediction) else blank for r in results])


def threads_of_the_pipeline() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(("decode", "engine"))]


@pytest.mark.parametrize("batch_size", [1, 4, 5, 11, 50])
@pytest.mark.parametrize("decode_threads", [1, 3])
def test_one_result_per_source_in_order(album: Path, batch_size: int, decode_threads: int) -> None:
    sources = list(find_sources([album]))
    sources.insert(3, Failure("a folder", "read", "Permission denied"))
    backend = FakeBackend()
    results = list(run(sources, backend, batch_size=batch_size, decode_threads=decode_threads))
    assert [r.path for r in results] == [s.path if isinstance(s, Failure) else s.name for s in sources]
    assert results[3] is sources[3]
    assert (results[0].width, results[0].height) == (40, 90)
    assert results[0].probabilities.dtype == np.float32
    assert max(backend.sizes) <= batch_size
    assert len(backend.threads) == 1
    assert not threads_of_the_pipeline()


def test_no_sources_no_results() -> None:
    assert list(run([], FakeBackend(), batch_size=4)) == []


@pytest.mark.parametrize("decode_threads", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 11, 64])
def test_onnx_runtime_answers_bit_for_bit_the_same_however_it_is_batched(
    album: Path, model_path: Path, batch_size: int, decode_threads: int
) -> None:
    pytest.importorskip("onnxruntime")
    backend = open_backend(model_path, "onnx-cpu")
    alone = [next(run([path], backend, batch_size=1, decode_threads=1)) for path in find_sources([album])]
    together = list(run(find_sources([album]), backend, batch_size=batch_size, decode_threads=decode_threads))
    np.testing.assert_array_equal(answers(together), answers(alone))
    assert np.ptp(answers(alone), axis=0).min() > 0.01  # the pictures do get different answers


def test_a_bad_picture_changes_nothing_for_its_neighbors(album: Path, model_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    backend = open_backend(model_path, "onnx-cpu")
    before = list(run(find_sources([album]), backend, batch_size=4))
    for bad in ("02.png", "05.png", "06.png"):
        (album / bad).write_bytes((album / bad).read_bytes()[:200])
    after = list(run(find_sources([album]), backend, batch_size=4))
    is_bad = np.array([isinstance(r, Failure) for r in after])
    assert is_bad.nonzero()[0].tolist() == [2, 5, 6]
    np.testing.assert_array_equal(answers(after)[~is_bad], answers(before)[~is_bad])


def test_a_batch_of_bad_pictures_does_not_trouble_the_engine(tmp_path: Path) -> None:
    for index in range(5):
        (tmp_path / f"{index}.jpg").write_bytes(b"not a picture")
    backend = FakeBackend()
    results = list(run(find_sources([tmp_path]), backend, batch_size=2))
    assert [type(r) for r in results] == [Failure] * 5
    assert backend.sizes == []


def test_results_outlive_the_batches_they_were_in(album: Path) -> None:
    """A consumer slower than the engine, and an engine that reuses its output, as one bound to a device does."""

    class Reusing(FakeBackend):
        output = np.empty((2, 2), np.float32)

        def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            self.output[: len(pixels)] = super().infer(pixels)
            return self.output[: len(pixels)]

    backend = Reusing()
    expected = answers(list(run(find_sources([album]), FakeBackend(), batch_size=1)))
    kept, copies = [], []
    for result in run(find_sources([album]), backend, batch_size=2, decode_threads=2):
        time.sleep(0.02)  # time for the other slots to be refilled and answered
        kept.append(result)
        copies.append(result.probabilities.copy())
    np.testing.assert_array_equal(answers(kept), np.stack(copies))
    np.testing.assert_array_equal(answers(kept), expected)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_sources_are_drawn_no_further_than_the_slots_hold(album: Path, batch_size: int) -> None:
    paths = list(find_sources([album]))
    drawn = 0

    def endless() -> Iterator[Source | Failure]:
        nonlocal drawn
        while True:
            drawn += 1
            yield paths[drawn % len(paths)]

    results = run(endless(), FakeBackend(), batch_size=batch_size, decode_threads=1)
    room = slots(batch_size, ahead=8, workers=1)
    assert drawn == 0
    for consumed in range(1, 40):
        next(results)
        assert drawn - consumed <= room * batch_size + 1
    results.close()
    assert not threads_of_the_pipeline()


def test_closing_early_stops_the_threads(album: Path) -> None:
    results = run(find_sources([album]), FakeBackend(), batch_size=2, decode_threads=3)
    next(results)
    assert threads_of_the_pipeline()
    results.close()
    assert not threads_of_the_pipeline()
    assert list(results) == []


def test_an_engine_that_fails_stops_the_run_and_its_threads(album: Path) -> None:
    class Failing(FakeBackend):
        def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            if len(self.sizes) == 1:
                raise BackendError("the GPU fell off the bus")
            return super().infer(pixels)

    results = run(find_sources([album]), Failing(), batch_size=2, decode_threads=2)
    assert [next(results).path, next(results).path] == [str(album / "00.png"), str(album / "01.png")]
    with pytest.raises(BackendError, match="fell off the bus"):
        next(results)
    assert not threads_of_the_pipeline()


def test_an_engine_that_loses_rows_is_not_believed(album: Path) -> None:
    class Short(FakeBackend):
        def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            return super().infer(pixels)[:-1]

    with pytest.raises(BackendError, match="has the shape"):
        list(run(find_sources([album]), Short(), batch_size=4))
    assert not threads_of_the_pipeline()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.5, -0.25])
def test_an_answer_that_is_no_number_is_a_failure_of_that_picture_only(album: Path, value: float) -> None:
    class Broken(FakeBackend):
        def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            probabilities = super().infer(pixels)
            probabilities[1, 1] = value
            return probabilities

    results = list(run(find_sources([album]), Broken(), batch_size=4))
    failed = [index for index, result in enumerate(results) if isinstance(result, Failure)]
    assert failed == [1, 5, 9]
    assert {results[index].stage for index in failed} == {"infer"}


def test_an_error_in_the_sources_is_raised_and_the_threads_stop(album: Path) -> None:
    def sources() -> Iterator[Source | Failure]:
        yield from list(find_sources([album]))[:5]
        raise RuntimeError("the listing broke")

    with pytest.raises(RuntimeError, match="the listing broke"):
        list(run(sources(), FakeBackend(), batch_size=2))
    assert not threads_of_the_pipeline()


@pytest.mark.skipif(not is_supported(), reason="decode processes need POSIX")
@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_processes_give_the_results_of_threads_and_their_memory_is_page_locked_once(
    album: Path, batch_size: int
) -> None:
    expected = list(run(find_sources([album]), FakeBackend(), batch_size=batch_size))
    backend, pool = FakeBackend(), DecodeProcesses(SPEC, count=2)
    try:
        for _ in range(2):
            results = list(run(find_sources([album]), backend, batch_size=batch_size, processes=pool))
            assert [r.path for r in results] == [r.path for r in expected]
            np.testing.assert_array_equal(answers(results), answers(expected))
            assert max(backend.sizes) <= batch_size
        first = len(backend.pinned)
        assert first == len(set(map(id, pool._memory._free)))
        unfinished = run(find_sources([album]), backend, batch_size=batch_size, processes=pool)
        next(unfinished)
        unfinished.close()
        assert len(backend.pinned) == first
    finally:
        pool.close()
    assert not threads_of_the_pipeline()
