"""A real TensorRT, which builds engines for GPUs that are not there; a stand-in runs them.

Each module of tests skips itself where TensorRT for RTX, with wheels for x86-64 only, is not installed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import onnxruntime
import pytest

from mineral_batch.cuda import probe
from mineral_batch.cuda.probe import DriverError, Gpu
from mineral_batch.engines.tensorrt import build as tensorrt_build

from ...fakes.cuda import Cuda
from ...fakes.tensorrt import Engines
from .graphs import LABELS, SIDE, write_product

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    import tensorrt_rtx
except ImportError:
    tensorrt_rtx = None


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise DriverError("no NVIDIA driver (libcuda.so.1 does not load)")

    monkeypatch.setattr(probe, "_driver", absent)


@pytest.fixture
def ada(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver shows a GPU; nothing can be run on it."""
    gpus = [Gpu(0, "NVIDIA L4", "8.9", 24 << 30)]
    for module in ("cuda.probe", "engines.tensorrt.layers", "engines.tensorrt.targets"):
        monkeypatch.setattr(f"mineral_batch.{module}.gpus", lambda: gpus)
    monkeypatch.setattr("mineral_batch.engines.tensorrt.open.cuda_version", lambda: "13.0")


@pytest.fixture
def l4(no_gpu: None, product: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engines]:
    """An NVIDIA L4, on which every engine answers as `product` does on the processor."""
    session = onnxruntime.InferenceSession(product.read_bytes(), providers=["CPUExecutionProvider"])
    cuda = Cuda()
    cuda.install(monkeypatch)
    engines = Engines(
        cuda, tensorrt_rtx, (SIDE, SIDE, 3), len(LABELS), lambda pixels: session.run(None, {"pixels": pixels})[0]
    )
    monkeypatch.setattr(tensorrt_rtx, "Runtime", engines.runtime)
    yield engines
    cuda.require_given_back()


@pytest.fixture
def product(tmp_path: Path) -> Path:
    return write_product(tmp_path)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return tmp_path / "model.plan"


@pytest.fixture
def datacenter(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """TensorRT for RTX under TensorRT's name and version, without the targets that only it has."""

    class Other(ModuleType):
        __version__ = "10.16.1.11"

        def __getattr__(self, name: str) -> Any:
            if name == "ComputeCapability":
                raise AttributeError(name)
            return getattr(tensorrt_rtx, name)

    module = Other("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.fixture
def timing_gpu(datacenter: ModuleType, ada: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A build that believes in its GPU; the engine is not loaded to be inspected, which crashes without one."""
    monkeypatch.setattr(tensorrt_build, "engine_layers", lambda *_: None)
    original = tensorrt_build.Network._configured

    def for_ada(self: Any, *given: Any) -> Any:
        config, kept = original(self, *given)
        config.num_compute_capabilities = 1
        config.set_compute_capability(tensorrt_rtx.ComputeCapability.SM89, 0)
        return config, kept

    monkeypatch.setattr(tensorrt_build.Network, "_configured", for_ada)
    return
