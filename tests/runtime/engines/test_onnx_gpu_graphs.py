"""CUDA graphs: nothing disturbs a capture, and a model that cannot be captured runs without."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mineral_batch.engines.registry import open_backend

from .conftest import expected, images, is_soon_true

if TYPE_CHECKING:
    from pathlib import Path

    from ...fakes.onnxruntime import Runtime


def test_while_one_gpu_captures_its_graph_the_others_wait(model_path: Path, runtime: Runtime) -> None:
    group = open_backend(model_path, "onnx-cuda", devices=[0, 1], batch_size=4)
    runtime.capturing = lambda: time.sleep(0.02)
    pixels = images(4)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):  # both run out of memory, and make new sessions, while the other one works
            runtime.fits = max(1, runtime.fits // 2) if runtime.fits < 4 else 2
            answers = list(pool.map(lambda _: group.infer(pixels), range(6)))
    for answer in answers:
        np.testing.assert_allclose(answer, expected(model_path, pixels), rtol=1e-6)
    assert not runtime.cuda.forbidden


def test_while_one_gpu_captures_its_graph_no_session_is_destroyed(model_path: Path, runtime: Runtime) -> None:
    backend = open_backend(model_path, "onnx-cuda", devices=[0])
    captures, ends = threading.Event(), threading.Event()

    def capture() -> None:
        captures.set()
        assert ends.wait(120)

    runtime.capturing = capture
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(open_backend, model_path, "onnx-cuda", devices=[1])
        assert captures.wait(120)
        closing = pool.submit(backend.close)
        assert not is_soon_true(closing.done)
        ends.set()
        closing.result()
        other.result().close()
    assert not runtime.cuda.forbidden
    assert not runtime.alive


def test_a_model_with_nodes_off_the_gpu_does_without_a_cuda_graph_and_says_so(
    model_path: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.refuse_graphs = True
    backend = open_backend(model_path, "onnx-cuda")
    assert [providers[0][1]["enable_cuda_graph"] for _, providers in runtime.of("session")] == ["1", "0"]
    assert backend.device == "GPU 0 (NVIDIA H200), TF32 allowed, without CUDA graph"
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "GPU 0: the model cannot be one CUDA graph (This session cannot use the graph"
    )
    assert "CPUExecutionProvider computes 1 AveragePool, 1 Cast" in record.getMessage()
    assert len(runtime.alive) == 1
    assert not runtime.cuda.forbidden


@pytest.mark.parametrize(
    "words",
    [
        "CUDA failure 900: operation not permitted when stream is capturing ; expr=cudaMalloc",
        "CUDA failure 901: operation failed due to a previous error during capture",
    ],
)
def test_a_graph_that_cannot_be_captured_is_done_without(
    model_path: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture, words: str
) -> None:
    runtime.capture_fails = words
    backend = open_backend(model_path, "onnx-cuda", batch_size=4)
    assert [providers[0][1]["enable_cuda_graph"] for _, providers in runtime.of("session")] == ["1", "0"]
    assert backend.device.endswith(", without CUDA graph")
    assert [words in record.getMessage() for record in caplog.records] == [True]
    assert len(runtime.alive) == 1
    runtime.fits = 2
    np.testing.assert_allclose(backend.infer(images(4)), expected(model_path, images(4)), rtol=1e-6)
    graphs = [providers[0][1]["enable_cuda_graph"] for _, providers in runtime.of("session")]
    assert graphs == ["1", "0", "0"], "not tried again for a smaller batch"
    assert not runtime.cuda.forbidden
