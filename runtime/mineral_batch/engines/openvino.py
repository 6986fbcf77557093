"""OpenVINO on the processor: one stream per core, in bfloat16 where the processor has it."""

from __future__ import annotations

from functools import cache
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.engines import graph
from mineral_batch.engines.onnx_cpu import first_line, refuse_devices
from mineral_batch.errors import BackendError
from mineral_batch.model.onnx_file import read_contract
from mineral_batch.system import cpu_count

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_batch.engines.base import Settings
    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Pixels, Probabilities

# Its names for a precision: as an option, and among the processor's abilities.
_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_ABILITIES = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16"}
_REASON_LENGTH = 300
_WORDS = {hint: name for name, hint in _HINTS.items()}


class OpenVinoBackend:
    """A model compiled for batches of one, and one infer request for each thread that may call; see `Backend`.

    One picture per stream costs up to a tenth more than batches of four (benchmarks/README.md) and gives what those
    cannot promise: a picture's answer is the same to the bit whatever was in the batch with it.
    """

    name = "openvino"
    batch_size = 1

    def __init__(self, compiled: list[Any], contract: ModelContract, version: str) -> None:
        precision = precision_of(compiled[0])
        self.contract = contract
        self.device = f"CPU, {precision}"
        self.version = f"OpenVINO {version}, {precision}"
        requests = [one.create_infer_request() for one in compiled for _ in range(_streams(one))]
        self.workers = len(requests)
        # Its first call in a process prepares its binding to NumPy, and two threads that do so at once wait for each
        # other for ever (seen in 2026.4.1: a static's guard against the interpreter's lock).
        _answer(requests[0], np.zeros(contract.input.shape, np.uint8))
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for request in requests:
            self._idle.put(request)

    def buffer(self, pictures: int) -> Pixels:
        """Ordinary memory."""
        return np.zeros((pictures, *self.contract.input.shape), np.uint8)

    def infer(self, pixels: Pixels) -> Probabilities:
        """(N, H, W, 3) uint8 RGB -> (N, L) float32 probabilities.

        Raises:
            BackendError: with OpenVINO's own words, if the run fails.
        """
        request = self._idle.get()
        try:
            rows = [_answer(request, row) for row in pixels]
        except RuntimeError as error:
            raise BackendError(f"openvino failed on a batch of {len(pixels)}: {_reason(error)}") from error
        finally:
            self._idle.put(request)
        return np.concatenate(rows)

    def close(self) -> None:
        """Drop the requests, and with them the compiled model."""
        self._idle = SimpleQueue()


def open_openvino(path: Path, settings: Settings) -> OpenVinoBackend:
    """Open a model with OpenVINO on the CPU.

    Raises:
        BackendError: if openvino is not installed or refuses the model, a GPU is wanted, or a precision that the
            processor lacks.
        ContractError: if the file carries no contract, or another one than its graph.
    """
    contract = read_contract(path)
    refuse_devices("openvino", settings)
    openvino = _openvino()
    core = _core()
    options = _precision_option(core, settings.precision)
    try:
        model = core.read_model(str(path))
        _check_graph(model, contract)
        model.reshape([1, *contract.input.shape])
        _require_right(path, model)
        compiled = _compiled(core, model, options)
    except RuntimeError as error:
        raise BackendError(f"OpenVINO cannot open {path}: {_reason(error)}") from error
    # "2026.4.1-22982-e213a147257-releases/2026/4": the release is what a user can install.
    return OpenVinoBackend(compiled, contract, openvino.__version__.split("-")[0])


def _compiled(core: Any, model: Any, options: dict[str, str]) -> list[Any]:
    """The model for as many threads as there are processors: once with a stream for each, or once for each.

    OpenVINO 2026.4.1 now and then compiles a transformer in INT8 wrongly for several streams: probabilities are off by
    0.4, and the same file is right with one stream. Files of 8 bits are small.
    """
    if not _roundings(model):
        return [core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT", **options})]
    alone = {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1", "ENABLE_CPU_PINNING": "NO", **options}
    return [core.compile_model(model, "CPU", alone) for _ in range(cpu_count())]


def _streams(compiled: Any) -> int:
    return int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))


def _roundings(model: Any) -> list[Any]:
    """The operations that round to 8 bits."""
    return [one for one in model.get_ops() if one.get_type_name() == "FakeQuantize"]


def _require_right(path: Path, model: Any) -> None:
    """Raises `BackendError` for 8-bit files that OpenVINO 2026.4.1 computes wrongly.

    They round what was scaled per channel right before (SmoothQuant), and its answers were off by up to 0.65 where ONNX
    Runtime's, to the same file, were off by 0.2; without the scaling the two were within 0.03 of each other.
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
    """What computes the input; a change of its type is passed over."""
    source = node.input_value(index).get_node()
    return _source(source, 0) if source.get_type_name() == "Convert" else source


@cache
def _core() -> Any:
    """One for the process, never given back.

    OpenVINO 2026.4.1 gives the thread that first uses the processor's plugin another stack for signals, and unmaps it
    when the plugin goes. In any other thread it cannot take it back from the first one, which then dies by the next
    signal that Python handles: by Ctrl-C, or by SIGCHLD under torch's DataLoader. So the plugin stays.
    """
    return _openvino().Core()


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise BackendError(f"OpenVINO does not load ({first_line(error)}): pip install openvino") from error
    return openvino


def _precision_option(core: Any, precision: str) -> dict[str, str]:
    """Nothing for `auto`: its own choice is bfloat16 where the processor multiplies in it, else float32."""
    if precision == "auto":
        return {}
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if _ABILITIES[precision] not in able:
        known = ", ".join(name for name, ability in _ABILITIES.items() if ability in able)
        raise BackendError(f"this processor does not compute in {precision}; OpenVINO can here: {known}")
    return {"INFERENCE_PRECISION_HINT": _HINTS[precision]}


def precision_of(compiled: Any) -> str:
    """What the compiled model really computes in."""
    found = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
    return _WORDS.get(found, found)


def _check_graph(model: Any, contract: ModelContract) -> None:
    def described(port: Any) -> tuple[str, list[str | int]]:
        shape = [size.get_length() if size.is_static else "N" for size in port.get_partial_shape()]
        return _TYPES.get(name := port.get_element_type().get_type_name(), name), shape

    graph.check(contract, described(model.inputs[0]), described(model.outputs[0]), inputs=len(model.inputs))


_TYPES = {"u8": "uint8", "f32": "float32"}


def _answer(request: Any, row: Pixels) -> Probabilities:
    """(H, W, 3) -> (1, L), copied, because the request reuses its output."""
    request.infer([row[None]], share_inputs=True)
    probabilities: Probabilities = request.get_output_tensor(0).data.copy()
    return probabilities


def _reason(error: RuntimeError) -> str:
    """Its messages run over many lines, of which those about its source files are for its makers."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(told)[:_REASON_LENGTH] if told else first_line(error)
