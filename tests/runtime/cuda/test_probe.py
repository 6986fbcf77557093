"""What the driver says of the GPUs, on machines without any CUDA package."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from mineral_batch import BackendError
from mineral_batch.cuda import probe
from mineral_batch.cuda.probe import DriverError, Gpu, require_gpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ...fakes.cuda import Cuda


def test_the_driver_lists_the_gpus(cuda: Cuda) -> None:
    assert probe.gpus() == [Gpu(0, "NVIDIA L4", "8.9", 24 << 30)]
    assert probe.first_gpu() == Gpu(0, "NVIDIA L4", "8.9", 24 << 30)
    assert probe.cuda_version() == "13.0"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """A libcuda whose `cuInit` returns that error."""

    def install(code: int) -> None:
        def init(flags: Any) -> int:
            return code

        init.__name__ = "cuInit"
        monkeypatch.setattr(probe.ctypes, "CDLL", lambda name: SimpleNamespace(cuInit=init))
        probe._driver.cache_clear()

    yield install
    probe._driver.cache_clear()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (999, "cuInit failed with CUDA error 999"),
        (100, r"cuInit failed with CUDA error 100 \(no GPU is visible\)"),
        (803, r"CUDA error 803 \(.* restart the machine\)"),
    ],
)
def test_an_error_of_the_driver_is_named_and_explained(library: Callable[[int], None], code: int, message: str) -> None:
    library(code)
    with pytest.raises(DriverError, match=message + "$") as caught:
        probe.gpus()
    assert caught.value.code == code
    assert probe.first_gpu() is None


def test_without_a_driver_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_LIBRARY", "libcuda-that-is-not-there.so.1")
    probe._driver.cache_clear()
    with pytest.raises(DriverError, match="no NVIDIA driver"):
        probe.gpus()
    with pytest.raises(BackendError, match=r"^tensorrt needs an NVIDIA GPU: no NVIDIA driver .*install the NVIDIA dr"):
        require_gpu("tensorrt")


def test_a_gpu_that_is_not_there_is_refused(cuda: Cuda) -> None:
    assert require_gpu("onnx-cuda", 0).index == 0
    for index in (-1, 1):
        with pytest.raises(BackendError, match=f"^onnx-cuda: there is no GPU {index}, only 0$"):
            require_gpu("onnx-cuda", index)
    cuda.gpus = 0
    with pytest.raises(BackendError, match="the driver shows none: check CUDA_VISIBLE_DEVICES"):
        require_gpu("onnx-cuda")
