"""ONNX Runtime, on the CPU or an NVIDIA GPU.

`get_available_providers()` names CUDA on machines without a GPU, and a session asked for it then runs on the CPU
without a word. What counts is `session.get_providers()[0]` after the session was made: that is checked.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

from mineral_batch._onnx_file import read_contract
from mineral_batch.errors import BackendError, ContractError

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_batch.contract import ModelContract
    from mineral_batch.images import Pixels
    from mineral_batch.pipeline import Probabilities

_ERRORS_ONLY = 3


class OnnxRuntimeBackend:
    """One ONNX Runtime session that maps (N, H, W, 3) uint8 to (N, L) float32; see `Backend`."""

    def __init__(self, session: Any, contract: ModelContract, *, name: str, device: str, batch_size: int) -> None:
        _check_graph(session, contract)
        self.name = name
        self.device = device
        self.contract = contract
        self.batch_size = batch_size
        self._session = session
        self._input = session.get_inputs()[0].name
        self._output = session.get_outputs()[0].name

    def infer(self, pixels: Pixels) -> Probabilities:
        """(N, H, W, 3) uint8 RGB -> (N, L) float32 probabilities.

        Raises:
            BackendError: with ONNX Runtime's own words, if the run fails.
        """
        try:
            probabilities: Probabilities = self._session.run([self._output], {self._input: pixels})[0]
        # Its exceptions have no common base class.
        except Exception as error:
            raise BackendError(f"{self.name} failed on a batch of {len(pixels)}: {_first_line(error)}") from error
        return probabilities

    def close(self) -> None:
        """Drop the session, and with it the memory it holds."""
        self._session = None


def open_cpu(path: Path, device: int) -> OnnxRuntimeBackend:
    """Open a model on the CPU; `device` has no meaning there.

    Raises:
        BackendError: if onnxruntime is not installed or refuses the model.
        ContractError: if the file carries no contract, or another one than its graph.
    """
    del device
    contract = read_contract(path)
    session = _session(path, "CPUExecutionProvider", {})
    return OnnxRuntimeBackend(session, contract, name="onnx-cpu", device="CPU", batch_size=8)


def open_cuda(path: Path, device: int) -> OnnxRuntimeBackend:
    """Open a model on NVIDIA GPU number `device`, or refuse: never on the CPU instead.

    Raises:
        BackendError: if there is no onnxruntime-gpu, no driver, or no such GPU.
        ContractError: if the file carries no contract, or another one than its graph.
    """
    contract = read_contract(path)
    session = _session(path, "CUDAExecutionProvider", {"device_id": str(device)})
    return OnnxRuntimeBackend(session, contract, name="onnx-cuda", device=f"CUDA {device}", batch_size=64)


def _session(path: Path, provider: str, options: dict[str, str]) -> Any:
    runtime = _onnxruntime(provider)
    settings = runtime.SessionOptions()
    settings.log_severity_level = _ERRORS_ONLY if provider == "CPUExecutionProvider" else 4
    try:
        session = runtime.InferenceSession(str(path), settings, providers=[(provider, options)])
    except Exception as error:  # its exceptions have no common base class
        raise BackendError(f"ONNX Runtime cannot open {path} on {provider}: {_first_line(error)}") from error
    if session.get_providers()[0] != provider:
        raise BackendError(
            f"ONNX Runtime was asked for {provider} and would run on {session.get_providers()[0]}: check the NVIDIA "
            f"driver (nvidia-smi) and that the CUDA and cuDNN libraries of onnxruntime-gpu {runtime.__version__} load"
        )
    return session


def _onnxruntime(provider: str) -> Any:
    """The module, if it is installed, only once, and knows the provider."""
    extra = "cpu" if provider == "CPUExecutionProvider" else "gpu"
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f'ONNX Runtime does not load ({_first_line(error)}): pip install "mineral-batch[{extra}]"'
        ) from error
    if provider in onnxruntime.get_available_providers():
        return onnxruntime
    if {"onnxruntime", "onnxruntime-gpu"} <= _installed():
        raise BackendError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu"
        )
    raise BackendError(
        f"the installed ONNX Runtime {onnxruntime.__version__} has no {provider}: "
        f'pip uninstall -y onnxruntime, then pip install "mineral-batch[{extra}]"'
    )


def _installed() -> set[str]:
    return {str(distribution.name).lower() for distribution in metadata.distributions() if distribution.name}


def _check_graph(session: Any, contract: ModelContract) -> None:
    """The graph must be the one that the contract describes: one input, one answer per label."""
    (pixels, *more), (probabilities, *_) = session.get_inputs(), session.get_outputs()
    size, labels = contract.input, len(contract.labels)
    wanted = ["tensor(uint8)", [size.height, size.width, 3], labels]
    found = [pixels.type, list(pixels.shape[1:]), probabilities.shape[-1]]
    if more or wanted != found or probabilities.type != "tensor(float)":
        raise ContractError(
            f"the model's graph takes {pixels.type} {pixels.shape} and gives {probabilities.type} "
            f"{probabilities.shape}, its contract says uint8 (N, {size.height}, {size.width}, 3) and float32 "
            f"(N, {labels}): export it again with mineral-export onnx"
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
