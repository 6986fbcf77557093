"""ONNX Runtime's TensorRT provider: options, cache, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mineral_batch import BackendError
from mineral_batch.cuda.probe import Gpu
from mineral_batch.engines import onnx_tensorrt
from mineral_batch.engines.registry import open_backend
from mineral_batch.model.contract import Numerics
from mineral_batch.model.onnx_file import write_contract

from .conftest import H200, expected, images

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_batch import ModelContract

    from ...fakes.onnxruntime import Runtime


def test_a_session_that_would_run_elsewhere_is_refused(model_path: Path, runtime: Runtime) -> None:
    runtime.really = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    with pytest.raises(BackendError, match="would run on CUDAExecutionProvider and not TensorrtExecutionProvider"):
        open_backend(model_path, "onnx-tensorrt")


def test_tensorrt_caches_what_it_built_under_all_that_it_depends_on(
    model_path: Path, runtime: Runtime, tmp_path: Path
) -> None:
    backend = open_backend(model_path, "onnx-tensorrt", batch_size=8, precision="float16")
    (tensorrt, options), (second, cuda) = runtime.of("session")[0][1]
    assert (options["trt_cuda_graph_enable"], cuda["enable_cuda_graph"]) == ("True", "0")
    (folder,) = (tmp_path / "caches" / "mineral-batch" / "tensorrt").iterdir()
    assert (tensorrt, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(folder)
    assert options["trt_fp16_enable"] == "True"
    assert folder.name.endswith("_ort1.99.0_trt10.16.0_NVIDIA-H200_sm9.0_batch8_float16")
    assert backend.version == (
        "ONNX Runtime 1.99.0, TensorRT 10.16.0, float16, NVIDIA H200 (compute capability 9.0), batches of 8"
    )
    np.testing.assert_allclose(backend.infer(images(9)), expected(model_path, images(9)), rtol=1e-6)


@pytest.mark.parametrize("numerics", [Numerics("float16"), Numerics("int8", "float16")])
@pytest.mark.parametrize("precision", ["auto", "float16"])
def test_a_file_that_says_what_is_float16_is_built_as_it_says(
    model_path: Path,
    contract: ModelContract,
    runtime: Runtime,
    tmp_path: Path,
    numerics: Numerics,
    precision: str,
) -> None:
    """To allow float16 would let TensorRT choose anew, also where the file keeps float32."""
    path = tmp_path / "half.onnx"
    path.write_bytes(model_path.read_bytes())
    write_contract(path, replace(contract, numerics=numerics))
    open_backend(path, "onnx-tensorrt", precision=precision)
    assert runtime.of("session")[0][1][0][1]["trt_fp16_enable"] == "False"


def test_tensorrt_does_not_promise_what_it_cannot_keep(model_path: Path, runtime: Runtime) -> None:
    with pytest.raises(BackendError, match=r"TF32 by default.*--backend onnx-cuda or --backend tensorrt"):
        open_backend(model_path, "onnx-tensorrt", precision="float32")
    assert not runtime.calls


def test_a_model_of_which_tensorrt_takes_nothing_is_refused(model_path: Path, runtime: Runtime) -> None:
    runtime.engines = 0
    with pytest.raises(BackendError, match=r"TensorRT takes no part of the model, there is no engine in .*onnx-cuda"):
        open_backend(model_path, "onnx-tensorrt")
    assert not runtime.alive


def test_a_model_that_tensorrt_takes_in_parts_is_told(
    model_path: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.engines = 2
    open_backend(model_path, "onnx-tensorrt")
    assert [record.getMessage() for record in caplog.records] == [
        "TensorRT computes 2 separate parts of the model, ONNX Runtime's CUDA provider what is between them"
    ]


@pytest.mark.parametrize("error", [ImportError, OSError])
def test_tensorrts_bindings_that_do_not_load_are_no_reason_to_give_up(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(name: str) -> Any:
        raise error(f"{name}: libnvinfer.so.10: cannot open shared object file")

    class Library:
        def getInferLibVersion(self) -> int:
            return 101_203

    monkeypatch.setattr(onnx_tensorrt.importlib, "import_module", fail)
    monkeypatch.setattr(onnx_tensorrt.ctypes, "CDLL", lambda name: Library())
    assert onnx_tensorrt.tensorrt_version() == "10.12.3"


def test_nothing_that_changes_an_engine_leaves_its_folder_the_same(tmp_path: Path) -> None:
    one, other = tmp_path / "one.onnx", tmp_path / "other.onnx"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    usual: dict[str, Any] = {
        "path": one,
        "gpu": H200[0],
        "onnxruntime": "1",
        "tensorrt": "10",
        "batch": 8,
        "is_half": True,
    }
    changes: list[dict[str, Any]] = [
        {},
        {"path": other},
        {"gpu": Gpu(0, "NVIDIA L4", "9.0", 1)},
        {"gpu": Gpu(0, "NVIDIA H200", "8.9", 1)},
        {"onnxruntime": "2"},
        {"tensorrt": "11"},
        {"batch": 4},
        {"is_half": False},
    ]
    folders = {onnx_tensorrt.engine_folder(**{**usual, **change}) for change in changes}
    assert len(folders) == len(changes)
    assert onnx_tensorrt.engine_folder(**{**usual, "gpu": H200[1]}) in folders  # the same kind of GPU in another slot
