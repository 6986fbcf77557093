"""Two NVIDIA H200s with a fake onnxruntime-gpu."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mineral_batch.cuda.probe import Gpu
from mineral_batch.engines import onnx_tensorrt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from ...fakes.onnxruntime import Runtime

H200 = [Gpu(index, "NVIDIA H200", "9.0", 24 << 30) for index in (0, 1)]
BATCH_BYTES = 4 * 24 * 32 * 3  # four images of the tiny model


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runtime:
    """`onnxruntime` is a fake; its `cuda` are the GPUs."""
    pytest.importorskip("onnxruntime")
    from ...fakes.cuda import Cuda
    from ...fakes.onnxruntime import Runtime

    cuda = Cuda(2, "NVIDIA H200", (9, 0))
    cuda.install(monkeypatch)
    runtime = Runtime(cuda)
    runtime.watch_lock(monkeypatch)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(onnx_tensorrt, "tensorrt_version", lambda: "10.16.0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return runtime


@pytest.fixture
def without_cuda_core(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core", None)


def images(count: int) -> NDArray[np.uint8]:
    """(count, 24, 32, 3)."""
    return np.random.default_rng(5).integers(0, 256, (count, 24, 32, 3)).astype(np.uint8)


def expected(model_path: Path, pixels: NDArray[np.uint8]) -> Any:
    """What the model answers on the CPU."""
    from ...fakes.onnxruntime import real

    session = real.InferenceSession(str(model_path), providers=["CPUExecutionProvider"])
    return session.run(None, {"pixels": pixels})[0]


def becomes_true(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + 120
    while not condition() and time.monotonic() < until:
        time.sleep(0.001)
    return condition()


def is_soon_true(condition: Callable[[], bool]) -> bool:
    """Long enough for a thread that does not wait to be done."""
    time.sleep(0.05)
    return condition()
