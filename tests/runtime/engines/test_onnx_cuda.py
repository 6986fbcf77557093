"""ONNX Runtime on the CUDA provider: buffers, staging, options."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mineral_batch import BackendError
from mineral_batch.cuda.probe import DriverError
from mineral_batch.cuda.staging import StagingBuffers
from mineral_batch.engines import onnx_cuda
from mineral_batch.engines.registry import open_backend
from mineral_batch.system import pip_install

from ...fakes.cuda import CudaError
from .conftest import BATCH_BYTES, H200, becomes_true, expected, images, is_soon_true

if TYPE_CHECKING:
    from pathlib import Path

    from ...fakes.onnxruntime import Runtime


@pytest.mark.parametrize("count", [1, 4, 7, 8])
def test_batches_have_one_size_and_go_through_the_same_buffers(model_path: Path, runtime: Runtime, count: int) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=4)
    pixels = images(count)
    for _ in range(3):
        np.testing.assert_allclose(backend.infer(pixels), expected(model_path, pixels), rtol=1e-6)
    assert runtime.of("allocate") == [("allocate", (4, 24, 32, 3), 0), ("allocate", (4, 5), 0)]
    assert runtime.cuda.log.count(f"allocate {BATCH_BYTES}") == 2
    assert {size for _, size in runtime.of("run")} == {4}
    assert len(runtime.of("session")) == 1
    assert len(runtime.cuda.uploads) == 3 * -(-count // 4)
    assert sum(line.startswith("on GPU") for line in runtime.cuda.log) == 3 * -(-count // 4)
    assert len(runtime.of("run")) - 1 == 3 * -(-count // 4), "one to capture the graph"
    backend.close()
    assert len(runtime.alive) == 0
    runtime.cuda.require_given_back()


def test_a_batch_on_the_gpu_is_one_wait(model_path: Path, runtime: Runtime) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=4)
    runtime.cuda.log.clear()
    backend.infer(images(3))
    size = 3 * 24 * 32 * 3
    staged, computed = [f"to GPU {size}", "wait"], [f"on GPU {size}", f"from GPU {3 * 5 * 4}", "wait"]
    assert runtime.cuda.log == staged + computed
    backend.close()


def test_onnx_runtime_computes_on_the_stream_of_the_copies(model_path: Path, runtime: Runtime) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=4)
    ((_, [(_, options)]),) = runtime.of("session")
    assert int(options["user_compute_stream"]) in runtime.cuda.streams
    backend.close()


@pytest.mark.usefixtures("without_cuda_core")
@pytest.mark.parametrize("count", [1, 4, 7, 8])
def test_without_room_for_the_next_batch_they_go_one_after_the_other_and_that_is_said(
    model_path: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=4)
    pixels = images(count)
    for _ in range(3):
        np.testing.assert_allclose(backend.infer(pixels), expected(model_path, pixels), rtol=1e-6)
    assert backend.workers == 1
    assert [record.getMessage() for record in caplog.records] == [
        "GPU 0: cuda-core is not installed (import of cuda.core halted; None in sys.modules): "
        f"{pip_install('gpu')}: slower, each batch is copied and then computed"
    ]
    copies = runtime.of("update")
    assert len(copies) == 3 * -(-count // 4)
    assert (("update", pixels.ctypes.data) in copies) == (count >= 4), "a full batch is copied from where it is"
    backend.close()


def test_a_full_batch_is_copied_to_the_gpu_from_where_it_is(model_path: Path, runtime: Runtime) -> None:
    pixels = images(8)
    open_backend(model_path, "onnx-cuda", batch_size=4).infer(pixels)
    assert runtime.cuda.uploads == [pixels[:4].ctypes.data, pixels[4:].ctypes.data]


def test_the_next_batch_is_copied_while_one_is_computed(model_path: Path, runtime: Runtime) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=4)
    batches = [images(4), 255 - images(4)]

    def wait_for_the_other() -> None:
        assert becomes_true(lambda: len(runtime.cuda.uploads) == 2), "the other batch waits, too"

    runtime.computing = wait_for_the_other
    assert backend.workers == 2
    with ThreadPoolExecutor(backend.workers) as pool:
        answers = list(pool.map(backend.infer, batches))
    for answer, batch in zip(answers, batches, strict=True):
        np.testing.assert_allclose(answer, expected(model_path, batch), rtol=1e-6)


def test_many_threads_get_each_their_own_answers(model_path: Path, runtime: Runtime) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=4)
    batches = [images(4)[: 1 + index % 4] // (1 + index) for index in range(12)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for answer, batch in zip(pool.map(backend.infer, batches), batches, strict=True):
                np.testing.assert_allclose(answer, expected(model_path, batch), rtol=1e-6)


def test_memory_is_given_back_when_nobody_uses_it_any_more(runtime: Runtime) -> None:
    staging = StagingBuffers(H200[0], (4, 24, 32, 3))
    is_inside, leaves = threading.Event(), threading.Event()

    def use() -> None:
        with staging.filled_with(images(4)):
            is_inside.set()
            assert leaves.wait(120)

    with ThreadPoolExecutor(2) as pool:
        used = pool.submit(use)
        assert is_inside.wait(120)
        closing = pool.submit(staging.close)
        assert not is_soon_true(closing.done)
        assert "free" not in runtime.cuda.log
        leaves.set()
        used.result()
        closing.result()
    staging.close()
    assert runtime.cuda.log.count("free") == 2
    runtime.cuda.require_given_back()
    with pytest.raises(DriverError, match="has been freed"), staging.filled_with(images(4)):
        pass


def test_where_one_place_fits_and_not_the_other_it_is_given_back(
    model_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = runtime.cuda.cuMemAlloc_v2

    def allocate_once(size: int) -> int:
        if f"allocate {size}" in runtime.cuda.log:
            raise CudaError("cuMemAlloc_v2", 2)
        return allocate(size)

    monkeypatch.setattr(runtime.cuda, "cuMemAlloc_v2", allocate_once)
    backend = open_backend(model_path, "onnx-cuda", batch_size=4)
    assert backend.workers == 1
    assert runtime.cuda.log.count("free") == 1
    np.testing.assert_allclose(backend.infer(images(4)), expected(model_path, images(4)), rtol=1e-6)


@pytest.mark.parametrize("devices", [[0], [0, 1]])
def test_to_close_twice_does_no_harm(model_path: Path, runtime: Runtime, devices: list[int]) -> None:
    backend = open_backend(model_path, "onnx-cuda", devices=devices)
    backend.close()
    backend.close()
    assert not runtime.alive
    runtime.cuda.require_given_back()


def test_pictures_of_another_shape_never_reach_the_gpu(model_path: Path, runtime: Runtime) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=4)
    for wrong in (np.zeros((2, 24, 33, 3), np.uint8), np.zeros((2, 24, 32, 3), np.float32)):
        with pytest.raises(BackendError, match=r"onnx-cuda got .*; it takes uint8"):
            backend.infer(wrong)
    assert not runtime.cuda.uploads
    assert backend.infer(images(4)[:0]).shape == (0, 5)
    mirrored = images(4)[:, :, ::-1]
    np.testing.assert_allclose(backend.infer(mirrored), expected(model_path, np.ascontiguousarray(mirrored)), rtol=1e-6)


def test_libraries_are_looked_for_before_the_session(model_path: Path, runtime: Runtime) -> None:
    open_backend(model_path, "onnx-cuda")
    assert [call[0] for call in runtime.calls[:2]] == ["preload", "session"]


@pytest.mark.parametrize(("precision", "tf32"), [("auto", "1"), ("float32", "0")])
def test_the_precision_is_an_option_and_part_of_the_version(
    model_path: Path, runtime: Runtime, precision: str, tf32: str
) -> None:
    backend = open_backend(model_path, "onnx-cuda", devices=[1], precision=precision)
    options = runtime.of("session")[0][1][0][1]
    assert (options["use_tf32"], options["device_id"]) == (tf32, "1")
    words = {"auto": "TF32 allowed", "float32": "float32"}[precision]
    assert backend.device == f"GPU 1 (NVIDIA H200), {words}"
    assert backend.version == (
        f"ONNX Runtime 1.99.0, {words}, NVIDIA H200 (compute capability 9.0), batches of {onnx_cuda.BATCH_SIZE}"
    )


@pytest.mark.parametrize("index", [-1, 2])
def test_a_gpu_that_is_not_there_is_refused(model_path: Path, runtime: Runtime, index: int) -> None:
    with pytest.raises(BackendError, match=f"onnx-cuda: there is no GPU {index}, only 0, 1$"):
        open_backend(model_path, "onnx-cuda", devices=[index])
