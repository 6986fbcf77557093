"""ONNX Runtime's CUDA provider: its options, its sessions for one batch size, and opening a model on it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mineral_batch.cuda.libraries import load_cuda_libraries, require_recent_driver
from mineral_batch.cuda.probe import require_gpu
from mineral_batch.engines.base import TF32, Device, EngineInfo, Tuning
from mineral_batch.engines.onnx_gpu import OnnxGpuEngine
from mineral_batch.engines.onnx_session import LOG_FATAL, RECORD_ASSIGNMENT, make_session, onnxruntime_with
from mineral_batch.errors import BackendError
from mineral_batch.model.onnx_file import read_contract

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mineral_batch.engines.base import EngineOptions

CUDA = "CUDAExecutionProvider"
BATCH_SIZE = 64
# The name that mineral-export gives to the batch dimension; fixed here, so that shapes are constants of the graph.
_BATCH_DIMENSION = "N"
# For a session without a CUDA graph. The two providers spell booleans differently: see `cuda_options`.
_WITHOUT_GRAPH = {"enable_cuda_graph": "0", "trt_cuda_graph_enable": "False"}

Provider = tuple[str, dict[str, str]]


def open_cuda(path: Path, options: EngineOptions) -> OnnxGpuEngine:
    """Open a model on an NVIDIA GPU, or refuse; never on the CPU instead.

    Raises:
        BackendError: if there is no onnxruntime-gpu, no driver, no such GPU, or a half precision is asked for.
        ContractError: if the file carries no contract, or another one than its graph.
    """
    contract = read_contract(path)
    if options.precision in ("bfloat16", "float16"):
        raise BackendError(
            f"onnx-cuda computes in the precision of the model file: export the model in half precision instead of "
            f"--precision {options.precision}"
        )
    gpu = require_gpu("onnx-cuda", options.device)
    runtime = onnxruntime_with(CUDA)
    require_recent_driver(runtime)
    load_cuda_libraries(runtime)
    is_exact = options.precision == "float32"
    batch = options.batch_size or BATCH_SIZE
    tuning = options.tuning
    info = EngineInfo(
        software=f"ONNX Runtime {runtime.__version__}{tuning}",
        precision="float32" if is_exact else TF32,
        device=Device("gpu", gpu),
        batch_size=batch,
        requested_batch_size=batch,
    )
    providers = [(CUDA, cuda_options(gpu.index, is_exact=is_exact, tuning=tuning))]
    session = partial(fixed_session, runtime, path, providers, tuning)
    return OnnxGpuEngine(session, runtime, contract, name="onnx-cuda", info=info)


def cuda_options(device: int, *, is_exact: bool, tuning: Tuning | None = None) -> dict[str, str]:
    """Options of ONNX Runtime's CUDA provider; convolutions by rule, so that two runs choose the same algorithms.

    Its parser takes `1` and `0` for booleans, the TensorRT provider's only `True` and `False`.
    https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
    """
    return {
        "device_id": str(device),
        "use_tf32": "0" if is_exact else "1",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "1",
        "prefer_nhwc": str(int((tuning or Tuning()).nhwc)),
    }


def fixed_session(
    runtime: Any,
    path: Path,
    providers: Sequence[Provider],
    tuning: Tuning,
    batch: int,
    has_graph: bool,
    stream: int = 0,
) -> Any:
    """Create a session for one batch size alone.

    Args:
        runtime: the module `onnxruntime`.
        path: of the model.
        providers: with their options, those for a CUDA graph among them.
        tuning: switches of the session.
        batch: images per call.
        has_graph: whether it is to be one CUDA graph, which is refused if the first provider cannot run every node.
        stream: handle of the stream to compute on; 0 for one of ONNX Runtime's own.

    Raises:
        BackendError: if the model is refused, another provider would run it, or its batch size is fixed otherwise.
    """
    options = runtime.SessionOptions()
    options.log_severity_level = LOG_FATAL
    options.use_deterministic_compute = tuning.deterministic
    options.add_free_dimension_override_by_name(_BATCH_DIMENSION, batch)
    options.add_session_config_entry(*RECORD_ASSIGNMENT)
    chosen = list(providers) if has_graph else [without_graph(provider) for provider in providers]
    session = make_session(runtime, path, options, [_on_stream(provider, stream) for provider in chosen])
    found = session.get_inputs()[0].shape[0]
    if found != batch:
        raise BackendError(
            f"the model's batch dimension is {found}, not the free '{_BATCH_DIMENSION}' of mineral-export onnx: "
            f"export it again"
        )
    return session


def without_graph(provider: Provider) -> Provider:
    """The same provider, without CUDA graphs."""
    name, options = provider
    return name, {option: _WITHOUT_GRAPH.get(option, value) for option, value in options.items()}


def _on_stream(provider: Provider, stream: int) -> Provider:
    name, options = provider
    return name, {**options, "user_compute_stream": str(stream)} if stream else options
