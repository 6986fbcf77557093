"""ONNX Runtime's TensorRT provider: an engine built once for this model, this GPU and these versions, then reused.

The provider itself reuses a cached engine whatever has changed since, so everything that an engine depends on is in the
name of its folder. Chosen by name only: the first build takes minutes.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import logging
import re
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from mineral_batch.cuda.libraries import load_cuda_libraries, require_recent_driver
from mineral_batch.cuda.probe import require_gpu
from mineral_batch.engines.base import TF32, Device, EngineInfo
from mineral_batch.engines.cache import make_folder
from mineral_batch.engines.onnx_cuda import BATCH_SIZE, CUDA, Provider, cuda_options, fixed_session, without_graph
from mineral_batch.engines.onnx_gpu import OnnxGpuEngine
from mineral_batch.engines.onnx_session import onnxruntime_with
from mineral_batch.errors import BackendError
from mineral_batch.files import cache_folder
from mineral_batch.model.onnx_file import read_contract
from mineral_batch.system import pip_install

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_batch.cuda.probe import Gpu
    from mineral_batch.engines.base import EngineOptions

_log = logging.getLogger("mineral_batch")
TENSORRT = "TensorrtExecutionProvider"
# ONNX Runtime 1.18 to 1.32 are linked against this one.
_LIBRARIES = ("libnvinfer.so.10", "nvinfer_10.dll")


def open_tensorrt(path: Path, options: EngineOptions) -> OnnxGpuEngine:
    """Open a model with TensorRT inside ONNX Runtime, or refuse; never on CUDA or the CPU instead.

    The parts of the graph that TensorRT does not take run on ONNX Runtime's CUDA provider, and that is logged.

    Raises:
        BackendError: if onnxruntime-gpu, TensorRT or a GPU is missing, TensorRT takes nothing of the model, or a
            precision is asked for that it does not keep to.
        ContractError: if the file carries no contract, or another one than its graph.
    """
    contract = read_contract(path)
    _check_precision(options.precision)
    gpu = require_gpu("onnx-tensorrt", options.device)
    runtime = onnxruntime_with(TENSORRT)
    require_recent_driver(runtime)
    load_cuda_libraries(runtime)
    tensorrt = tensorrt_version()
    is_half = options.precision == "float16"
    # Unless float16 or int8 are allowed, the provider has TensorRT build exactly what the file says ("strongly typed").
    # Allowed, TensorRT would choose anew, also for the layers that the file keeps in float32 because they need it.
    may_choose = is_half and not contract.numerics.has_float16
    batch = options.batch_size or BATCH_SIZE

    @cache
    def folder(batch: int) -> Path:
        return engine_folder(path, gpu, runtime.__version__, tensorrt, batch, is_half=may_choose)

    def session(batch: int, has_graph: bool, stream: int) -> Any:
        make_folder(folder(batch))
        providers = tensorrt_providers(folder(batch), gpu.index, is_half=may_choose)
        return fixed_session(runtime, path, providers, options.tuning, batch, has_graph, stream)

    info = EngineInfo(
        software=f"ONNX Runtime {runtime.__version__}, TensorRT {tensorrt}",
        precision="float16" if is_half else TF32,
        device=Device("gpu", gpu),
        batch_size=batch,
        requested_batch_size=batch,
    )
    return OnnxGpuEngine(
        session, runtime, contract, name="onnx-tensorrt", info=info, check=lambda batch: require_engine(folder(batch))
    )


def _check_precision(precision: str) -> None:
    if precision == "bfloat16":
        raise BackendError(
            "onnx-tensorrt computes in float32 with TF32, or in float16: choose --precision auto or float16"
        )
    if precision == "float32":
        raise BackendError(
            "onnx-tensorrt cannot keep to float32: TensorRT uses TF32 by default, and ONNX Runtime's provider has no "
            "switch for it: choose --backend onnx-cuda or --backend tensorrt, which can"
        )


def require_engine(folder: Path) -> None:
    """After the first run, require that TensorRT has built an engine, and log if it had to be several.

    Args:
        folder: where the provider keeps them.

    Raises:
        BackendError: if there is none; everything would run on ONNX Runtime's CUDA provider.
    """
    engines = len(list(folder.glob("*.engine")))
    if not engines:
        raise BackendError(
            f"TensorRT takes no part of the model, there is no engine in {folder}: choose --backend onnx-cuda, which "
            f"would compute all of it"
        )
    if engines > 1:
        _log.warning(
            "TensorRT computes %d separate parts of the model, ONNX Runtime's CUDA provider what is between them",
            engines,
        )


def engine_folder(path: Path, gpu: Gpu, onnxruntime: str, tensorrt: str, batch: int, *, is_half: bool) -> Path:
    """The folder for the engine of exactly this model, GPU, software, batch size and precision.

    Args:
        path: the model file; its content counts, not its name.
        gpu: the GPU that it is built for.
        onnxruntime: version.
        tensorrt: version.
        batch: images per call.
        is_half: float16 where TensorRT finds it faster.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    kind = re.sub(r"[^A-Za-z0-9]+", "-", gpu.name).strip("-")
    precision = "float16" if is_half else "float32"
    name = f"{digest[:16]}_ort{onnxruntime}_trt{tensorrt}_{kind}_sm{gpu.compute_capability}_batch{batch}_{precision}"
    return cache_folder() / "tensorrt" / name


def tensorrt_version() -> str:
    """The version of the TensorRT library that ONNX Runtime will use, such as `10.16.0`.

    Raises:
        BackendError: if it does not load.
    """
    # The pip package keeps the library where the loader does not look, and loads it when it is imported.
    # Its bindings raise OSError where they do not find it.
    with suppress(ImportError, OSError):
        importlib.import_module("tensorrt")
    for name in _LIBRARIES:
        with suppress(OSError):
            number = ctypes.CDLL(name).getInferLibVersion()
            return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    raise BackendError(
        f"TensorRT 10 does not load, which ONNX Runtime's TensorRT provider needs: {pip_install('onnx-trt')}"
    )


def tensorrt_providers(folder: Path, device: int, *, is_half: bool) -> list[Provider]:
    """The providers with their options. The parser takes only `True` and `False` for booleans.

    https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html
    """
    options = {
        "device_id": str(device),
        "trt_fp16_enable": str(is_half),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
        "trt_cuda_graph_enable": "True",
    }
    return [(TENSORRT, options), without_graph((CUDA, cuda_options(device, is_exact=False)))]
