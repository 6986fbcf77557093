"""An NVIDIA L4 with a fake TensorRT, through pycuda and through cuda-core, and an engine file."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mineral_batch import BackendError, ContractError
from mineral_batch.engines.registry import open_backend
from mineral_batch.engines.tensorrt.plan import EngineRecord, Profile, write_engine

from ....fakes.cuda import Cuda
from ....fakes.tensorrt import Engines, tensorrt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mineral_batch import ModelContract


PLAN = b"the plan"


class Machine(Cuda):
    """With TensorRT; each label's answer is the mean of the picture, divided by the label's number."""

    def __init__(self, contract: ModelContract, layer: str) -> None:
        super().__init__()
        self.layer = layer
        shape, labels = contract.input.shape, len(contract.labels)
        self.tensorrt = Engines(self, tensorrt(), shape, labels, partial(expected, labels=labels))
        self.tensorrt.library.Runtime = self.tensorrt.runtime
        self.opened: list[Any] = []

    def open(self, engine: Path, **options: Any) -> Any:
        """Closed at the end of the test, if not before."""
        self.opened.append(backend := open_backend(engine, "tensorrt", **options))
        return backend


def expected(batch: np.ndarray, labels: int) -> np.ndarray:
    return (batch.reshape(len(batch), -1).mean(axis=1)[:, None] / 255 / np.arange(1, labels + 1)).astype(np.float32)


@pytest.fixture(params=["pycuda", "cuda-core"])
def machine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, contract: ModelContract, tmp_path: Path
) -> Iterator[Machine]:
    machine = Machine(contract, request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", machine.tensorrt.library)
    machine.install(monkeypatch, pycuda=request.param == "pycuda")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield machine
    for backend in machine.opened:
        backend.close()
    machine.require_given_back()


def record(contract: ModelContract, **changes: Any) -> EngineRecord:
    made = EngineRecord(
        contract=contract,
        source="model.onnx",
        onnx_sha256="0" * 64,
        engine_sha256=hashlib.sha256(PLAN).hexdigest(),
        runtime="tensorrt",
        version="10.13.3.9",
        cuda="13.0",
        gpu="NVIDIA L4",
        compute_capabilities=("8.9",),
        precision="float16",
        products={"float16": 9},
        layers={"float16": 20, "float32": 3},
        layers_from="engine",
        profile=Profile(1, 4, 8),
        inputs={"pixels": "uint8 (-1, 24, 32, 3)"},
        outputs={"probabilities": "float32 (-1, 5)"},
        rebuild="mineral-export trt model.onnx -o model.plan",
    )
    return replace(made, **changes)


@pytest.fixture
def engine(tmp_path: Path, contract: ModelContract) -> Path:
    path = tmp_path / "model.plan"
    write_engine(path, PLAN, record(contract))
    return path


def images(count: int, contract: ModelContract) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *contract.input.shape)).astype(np.uint8)


def refused(path: Path, **options: Any) -> str:
    with pytest.raises((BackendError, ContractError)) as caught:
        open_backend(path, "tensorrt", **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.fixture
def rtx_engine(machine: Machine, engine: Path, contract: ModelContract, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TensorRT for RTX, and one of its engines."""
    machine.tensorrt.library.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", machine.tensorrt.library)
    write_engine(engine, PLAN, record(contract, runtime="tensorrt-rtx"))
    return engine
