"""ONNX Runtime and OpenVINO with their defaults."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.cuda.libraries import load_cuda_libraries
from mineral_batch.cuda.probe import first_gpu
from mineral_batch.engines.onnx_cuda import CUDA
from mineral_batch.engines.onnx_session import CPU
from mineral_batch.engines.openvino import precision_of
from mineral_batch.errors import BackendError
from mineral_batch.model.onnx_file import read_contract
from mineral_bench.baselines.base import Baseline, decode_in_full

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_batch.types import Pixels, Probabilities


class OnnxRuntimeBaseline(Baseline):
    """A session with default options, one image after the other: the first example of every tutorial."""

    def __init__(self, model: Path) -> None:
        import onnxruntime

        self.spec = read_contract(model).input
        # Azure's provider calls web services and computes no model, but would be listed first.
        self._wanted = [name for name in onnxruntime.get_available_providers() if name != "AzureExecutionProvider"]
        if CUDA in self._wanted:
            load_cuda_libraries(onnxruntime)
        self._session = onnxruntime.InferenceSession(str(model), providers=self._wanted)
        self._input = self._session.get_inputs()[0].name

    def describe(self) -> str:
        """Return the session's first provider.

        Raises:
            BackendError: if that is the CPU although there is a GPU: it would look slow.
        """
        provider = str(self._session.get_providers()[0])
        if provider == CPU and CUDA in self._wanted and first_gpu():
            raise BackendError(
                "ONNX Runtime ran on the CPU although there is a GPU: check that the CUDA and cuDNN libraries of "
                "onnxruntime-gpu load (mineral-batch doctor)"
            )
        may_round = self._session.get_provider_options().get(provider, {}).get("use_tf32") == "1"
        return f"{provider}, TF32 allowed" if may_round else provider

    def from_files(self) -> Probabilities:
        """Decode in full, predict, next."""
        return np.concatenate([self._predict(decode_in_full(path, self.spec)) for path in self.paths])

    def from_pixels(self) -> Probabilities:
        """Predict one by one."""
        return np.concatenate([self._predict(pixels) for pixels in self.pixels])

    def _predict(self, pixels: Pixels) -> Probabilities:
        probabilities: Probabilities = self._session.run(None, {self._input: pixels[None]})[0]
        return probabilities


class OpenVinoBaseline(OnnxRuntimeBaseline):
    """The same with OpenVINO, which computes in bfloat16 if the CPU can."""

    def __init__(self, model: Path) -> None:
        openvino = importlib.import_module("openvino")
        self.spec = read_contract(model).input
        self._compiled = openvino.Core().compile_model(str(model), "CPU")

    def describe(self) -> str:
        """Return the CPU, and the precision that OpenVINO chose."""
        return f"CPU, {precision_of(self._compiled)}"

    def _predict(self, pixels: Pixels) -> Probabilities:
        probabilities: Probabilities = self._compiled(pixels[None])[0].copy()
        return probabilities
