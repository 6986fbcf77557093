"""Engines that are built on first use, and TensorRT where it is missing."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mineral_batch.cuda import probe
from mineral_batch.engines.registry import open_backend
from mineral_batch.engines.tensorrt import open as open_module
from mineral_batch.engines.tensorrt.build import Built
from mineral_batch.engines.tensorrt.layers import Layers, inspected
from mineral_batch.model.onnx_file import write_contract

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_batch import ModelContract

from .conftest import PLAN, Machine, refused


def test_an_onnx_file_is_built_once(
    machine: Machine, model_path: Path, tmp_path: Path, contract: ModelContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []

    class Network:
        def __init__(self, library: Any, source: Path) -> None:
            built.append(source)

        def build(self, options: Any) -> Built:
            return Built(PLAN, Layers({"float32": 1}, {"float32": 8}), {}, {})

    monkeypatch.setattr(open_module, "Network", Network)
    source = tmp_path / "model.onnx"
    source.write_bytes(model_path.read_bytes())
    machine.tensorrt.compute = open_backend(model_path, "onnx-cpu").infer

    def opened(**options: Any) -> Any:
        backend = open_backend(source, "tensorrt", **options)
        backend.close()
        return backend

    assert ", TF32 allowed, " in opened().version
    machine.require_given_back()  # also the context that it was built in
    opened()
    assert len(built) == 1, "the second time it is read"
    changed = contract.with_thresholds([0.9] * 5)
    write_contract(source, changed)
    assert opened().contract == changed
    assert len(built) == 1, "thresholds do not change the graph"
    opened(batch_size=2)
    assert len(built) == 2, "another batch is another engine"
    assert ", float32, " in opened(precision="float32").version
    assert len(built) == 3, "float32 without TF32 is another engine, too"
    kept = next(iter((tmp_path / "cache").rglob("model.plan.json")))
    kept.write_text("{}")
    kept.with_name("model.plan").write_bytes(b"half of it")
    opened()
    opened(batch_size=2)
    opened(precision="float32")
    assert len(built) == 4, "a damaged one is built anew"


@pytest.mark.parametrize("wrong", [0.5, np.nan])
def test_an_engine_that_answers_otherwise_than_its_model_is_not_kept(
    machine: Machine, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    plan = Built(PLAN, Layers({"float32": 1}, {"float32": 8}), {}, {})
    monkeypatch.setattr(open_module, "Network", lambda *_: SimpleNamespace(build=lambda options: plan))
    right = open_backend(model_path, "onnx-cpu").infer
    machine.tensorrt.compute = lambda pixels: right(pixels) + np.float32(wrong)
    message = refused(model_path)
    assert "builds from tiny.onnx differs from ONNX Runtime by" in message
    assert not list((tmp_path / "cache").rglob("*.plan"))
    machine.tensorrt.compute = right
    machine.open(model_path)


def test_a_cache_that_cannot_be_made_is_told_before_minutes_of_work(
    machine: Machine, model_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert "set XDG_CACHE_HOME to a folder that can be written to" in refused(model_path)
    assert not machine.log


def test_without_a_driver_nothing_of_tensorrt_is_touched(
    engine: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> Any:
        raise probe.DriverError("no NVIDIA driver: libcuda.so.1: cannot open")

    monkeypatch.setattr(probe, "_driver", absent)
    for path in (engine, model_path):
        message = refused(path)
        assert "needs an NVIDIA GPU" in message
        assert "install the NVIDIA driver" in message


def test_a_missing_package_is_named(machine: Machine, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "pip install" in refused(engine)


@pytest.mark.parametrize("error", ["OSError('libnvinfer.so.10: cannot open')", "ImportError('libcudart.so.13')"])
def test_a_tensorrt_without_its_libraries_says_so(
    machine: Machine, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(f"raise {error}")
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(tmp_path)
    assert "tensorrt is installed and does not load (lib" in refused(engine)


def test_the_inspectors_words_are_counted_in_both_forms() -> None:
    told = {
        "Layers": [
            {"Name": "a", "Outputs": [{"Format/Datatype": "Half"}]},
            {"Name": "b", "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}]},
            {"Name": "c", "Outputs": [{"Format/Datatype": "Float"}]},
            {"Name": "d", "Outputs": [{"Format/Datatype": "Row major Int8 format"}]},
            {"Name": "e", "Outputs": []},
            "only a name",
        ]
    }
    assert inspected(json.dumps(told)) == {"float16": 2, "float32": 1, "int8": 1}
