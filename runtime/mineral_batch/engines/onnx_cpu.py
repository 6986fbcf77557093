"""ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.engines.base import Engine, EngineInfo, EngineOptions
from mineral_batch.engines.onnx_session import CPU, LOG_ERRORS, check_graph, first_line, make_session, onnxruntime_with
from mineral_batch.errors import BackendError
from mineral_batch.model.onnx_file import read_contract
from mineral_batch.system import cpu_count

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Pixels, Probabilities


class OnnxCpuEngine(Engine):
    """One session that `workers` threads share, each with one image on one thread; see `Engine`.

    One image per thread, not one batch over all threads: there is nothing to wait for between the layers. On two shared
    cores this was 1.4 to 1.6 times ONNX Runtime's own settings with a batch of 8 (benchmarks/README.md), and an image's
    probabilities cannot depend on the batch that it came in.
    """

    name = "onnx-cpu"

    def __init__(self, session: Any, contract: ModelContract, version: str) -> None:
        check_graph(session, contract)
        super().__init__(contract, EngineInfo(f"ONNX Runtime {version}", "float32"), workers=cpu_count())
        self._session = session
        self._input = session.get_inputs()[0].name
        self._output = session.get_outputs()[0].name

    def compute(self, pixels: Pixels) -> Probabilities:
        """See `Engine`."""
        try:
            rows = [self._session.run([self._output], {self._input: row[None]})[0] for row in pixels]
        except Exception as error:  # its exceptions have no common base class
            raise BackendError(f"{self.name} failed on a batch of {len(pixels)}: {first_line(error)}") from error
        return np.concatenate(rows)

    def release(self) -> None:
        """Drop the session, and with it the memory that it holds."""
        self._session = None


def open_cpu(path: Path, options: EngineOptions | None = None) -> OnnxCpuEngine:
    """Open a model on the CPU.

    Raises:
        BackendError: if onnxruntime is not installed or refuses the model, or the options name a GPU or a precision
            other than float32.
        ContractError: if the file carries no contract, or another one than its graph.
    """
    contract = read_contract(path)
    OnnxCpuEngine.check_options(options or EngineOptions())
    runtime = onnxruntime_with(CPU)
    settings = runtime.SessionOptions()
    settings.log_severity_level = LOG_ERRORS
    settings.intra_op_num_threads = 1
    session = make_session(runtime, path, settings, [(CPU, {})])
    return OnnxCpuEngine(session, contract, runtime.__version__)
