"""ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.engines.base import Engine, EngineInfo, EngineOptions
from mineral_batch.engines.onnx_session import CPU, LOG_ERRORS, check_graph, first_line, make_session, onnxruntime_with
from mineral_batch.errors import BackendError
from mineral_batch.model.familiarity import OUTPUT as FAMILIARITY
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
    gives_familiarity = True

    def __init__(self, session: Any, contract: ModelContract, version: str, *, familiarity: bool = False) -> None:
        check_graph(session, contract)
        info = EngineInfo(f"ONNX Runtime {version}", "float32")
        super().__init__(contract, info, workers=cpu_count(), familiarity=familiarity)
        self._session = session
        self._input = session.get_inputs()[0].name
        self._outputs = [session.get_outputs()[0].name, *([FAMILIARITY] if familiarity else [])]

    def compute(self, pixels: Pixels) -> Probabilities:
        """See `Engine`."""
        try:
            answers = [self._session.run(self._outputs, {self._input: row[None]}) for row in pixels]
        except Exception as error:  # its exceptions have no common base class
            raise BackendError(f"{self.name} failed on a batch of {len(pixels)}: {first_line(error)}") from error
        # An image's probabilities, then its familiarity where that was asked for.
        return np.concatenate([np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0] for parts in answers])

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
    options = options or EngineOptions()
    OnnxCpuEngine.check_options(options)
    runtime = onnxruntime_with(CPU)
    settings = runtime.SessionOptions()
    settings.log_severity_level = LOG_ERRORS
    settings.intra_op_num_threads = 1
    session = make_session(runtime, path, settings, [(CPU, {})])
    return OnnxCpuEngine(session, contract, runtime.__version__, familiarity=options.familiarity)
