"""OpenVINO on the CPU: one stream per core, in bfloat16 where the CPU has it."""

from __future__ import annotations

from functools import cache
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.engines.base import PRECISIONS, Engine, EngineInfo, check_signature
from mineral_batch.engines.onnx_session import first_line
from mineral_batch.errors import BackendError
from mineral_batch.model.familiarity import OUTPUT as FAMILIARITY
from mineral_batch.model.onnx_file import read_contract
from mineral_batch.system import cpu_count, pip_install

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mineral_batch.engines.base import EngineOptions
    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Pixels, Probabilities

# OpenVINO's names for a precision: as an option, and among the CPU's capabilities.
_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_CAPABILITIES = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16"}
_PRECISION_BY_HINT = {hint: name for name, hint in _HINTS.items()}
_TYPES = {"u8": "uint8", "f32": "float32"}
_REASON_LENGTH = 300


class OpenVinoEngine(Engine):
    """A model compiled for batches of one, and one infer request for each thread that may call; see `Engine`.

    One image per stream costs up to a tenth more than batches of four (benchmarks/README.md). In return an image's
    probabilities are the same to the bit whatever was in the batch with it.
    """

    name = "openvino"
    precisions = PRECISIONS
    gives_familiarity = True

    def __init__(
        self, compiled: list[Any], contract: ModelContract, version: str, *, familiarity: bool = False
    ) -> None:
        requests = [one.create_infer_request() for one in compiled for _ in range(_streams(one))]
        info = EngineInfo(f"OpenVINO {version}", precision_of(compiled[0]))
        super().__init__(contract, info, workers=len(requests), familiarity=familiarity)
        self._outputs = [0, *([_place(compiled[0], FAMILIARITY)] if familiarity else [])]
        # Its first call in a process prepares its binding to NumPy, and two threads that do so at once wait for each
        # other for ever (seen in 2026.4.1: a static's guard against the interpreter's lock).
        _answer(requests[0], np.zeros(contract.input.shape, np.uint8), self._outputs)
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for request in requests:
            self._idle.put(request)

    def compute(self, pixels: Pixels) -> Probabilities:
        """See `Engine`."""
        request = self._idle.get()
        try:
            rows = [_answer(request, row, self._outputs) for row in pixels]
        except RuntimeError as error:
            raise BackendError(f"openvino failed on a batch of {len(pixels)}: {_reason(error)}") from error
        finally:
            self._idle.put(request)
        return np.concatenate(rows)

    def release(self) -> None:
        """Drop the requests, and with them the compiled model."""
        self._idle = SimpleQueue()


def open_openvino(path: Path, options: EngineOptions) -> OpenVinoEngine:
    """Open a model with OpenVINO on the CPU.

    Raises:
        BackendError: if openvino is not installed or refuses the model, or the options name a GPU or a precision that
            this CPU does not compute in.
        ContractError: if the file carries no contract, or another one than its graph.
    """
    contract = read_contract(path)
    OpenVinoEngine.check_options(options)
    openvino = _openvino()
    core = _core()
    hint = _precision_hint(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"), options.precision)
    try:
        model = core.read_model(str(path))
        _check_graph(model, contract)
        model.reshape([1, *contract.input.shape])
        _refuse_scaled_activations(path, model)
        compiled = _compiled(core, model, hint)
    except RuntimeError as error:
        raise BackendError(f"OpenVINO cannot open {path}: {_reason(error)}") from error
    # "2026.4.1-22982-e213a147257-releases/2026/4": the release is what a user can install.
    version = openvino.__version__.split("-")[0]
    return OpenVinoEngine(compiled, contract, version, familiarity=options.familiarity)


def _compiled(core: Any, model: Any, hint: dict[str, str]) -> list[Any]:
    """Compile the model for one thread per core: once with a stream for each, or, in 8 bits, once for each.

    OpenVINO 2026.4.1 now and then compiles a transformer in INT8 wrongly for several streams: probabilities are off by
    0.4, and the same file is right with one stream. Files of 8 bits are small.
    """
    if not _roundings(model):
        return [core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT", **hint})]
    alone = {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1", "ENABLE_CPU_PINNING": "NO", **hint}
    return [core.compile_model(model, "CPU", alone) for _ in range(cpu_count())]


def _streams(compiled: Any) -> int:
    return int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))


def _roundings(model: Any) -> list[Any]:
    """The operations that round to 8 bits."""
    return [one for one in model.get_ops() if one.get_type_name() == "FakeQuantize"]


def _refuse_scaled_activations(path: Path, model: Any) -> None:
    """Refuse 8-bit files that OpenVINO 2026.4.1 computes wrongly.

    They round what was scaled per channel right before (SmoothQuant). OpenVINO's probabilities were off by up to 0.65
    where ONNX Runtime's, for the same file, were off by 0.2; without the scaling the two agreed within 0.03.
    """
    rounded = (_source(one, 0) for one in _roundings(model))
    if any(node.get_type_name() == "Multiply" and _has_channels(node) for node in rounded):
        raise BackendError(
            f"OpenVINO computes {path.name} wrongly: its activations are scaled per channel before they are rounded to "
            f"8 bits; use --backend onnx-cpu, or make one for it: mineral-export int8 --target openvino"
        )


def _has_channels(node: Any) -> bool:
    factors = (_source(node, index) for index in range(2))
    return any(
        factor.get_type_name() == "Constant" and np.prod(tuple(factor.get_output_shape(0))) > 1 for factor in factors
    )


def _source(node: Any, index: int) -> Any:
    """The node that computes the input, behind any change of type."""
    source = node.input_value(index).get_node()
    return _source(source, 0) if source.get_type_name() == "Convert" else source


@cache
def _core() -> Any:
    """The process's one core, never destroyed.

    OpenVINO 2026.4.1 gives the thread that first uses the CPU plugin another stack for signals, and unmaps it when the
    plugin goes. In any other thread it cannot take it back from the first one, which then dies by the next signal that
    Python handles: by Ctrl-C, or by SIGCHLD under torch's DataLoader. So the plugin stays.
    """
    return _openvino().Core()


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise BackendError(f"OpenVINO does not load ({first_line(error)}): {pip_install('openvino')}") from error
    return openvino


def _precision_hint(capabilities: Sequence[str], precision: str) -> dict[str, str]:
    """The option for a precision; none for `auto`: OpenVINO then takes bfloat16 where the CPU multiplies in it."""
    if precision == "auto":
        return {}
    if _CAPABILITIES[precision] not in capabilities:
        known = ", ".join(name for name, capability in _CAPABILITIES.items() if capability in capabilities)
        raise BackendError(f"this CPU does not compute in {precision}; OpenVINO can use here: {known}")
    return {"INFERENCE_PRECISION_HINT": _HINTS[precision]}


def precision_of(compiled: Any) -> str:
    """What the compiled model really computes in."""
    hint = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
    return _PRECISION_BY_HINT.get(hint, hint)


def _check_graph(model: Any, contract: ModelContract) -> None:
    def described(port: Any) -> tuple[str, list[str | int]]:
        shape = [size.get_length() if size.is_static else "N" for size in port.get_partial_shape()]
        return _TYPES.get(name := port.get_element_type().get_type_name(), name), shape

    check_signature(contract, described(model.inputs[0]), described(model.outputs[0]), inputs=len(model.inputs))


def _place(compiled: Any, name: str) -> int:
    """The place of an output among the others."""
    return next(place for place, port in enumerate(compiled.outputs) if name in port.get_names())


def _answer(request: Any, row: Pixels, outputs: Sequence[int]) -> Probabilities:
    """(H, W, 3) -> (1, L) or, with familiarity, (1, L + 1), copied, because the request reuses its output."""
    request.infer([row[None]], share_inputs=True)
    answers: Probabilities = np.concatenate([request.get_output_tensor(place).data for place in outputs], axis=1)
    return answers


def _reason(error: RuntimeError) -> str:
    """Its message as one line, without the lines about its source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(kept)[:_REASON_LENGTH] if kept else first_line(error)
