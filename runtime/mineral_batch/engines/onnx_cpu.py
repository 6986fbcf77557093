"""ONNX Runtime on the CPU, and what its three backends share.

`get_available_providers()` names CUDA on machines without a GPU, and a session asked for it then runs on the CPU
without a word. What counts is `session.get_providers()[0]` after the session was made: that is checked.
"""

from __future__ import annotations

from collections import Counter
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.engines import graph
from mineral_batch.engines.base import DEFAULT, Settings
from mineral_batch.errors import BackendError
from mineral_batch.model.onnx_file import read_contract
from mineral_batch.system import cpu_count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Pixels, Probabilities

CPU = "CPUExecutionProvider"
_LOG_ERRORS, _LOG_FATAL = 3, 4

# ONNX Runtime 1.32 rewrites what it finds around QuantizeLinear as if float32 were rounded to integers: beside FP16 it
# rounds biases by a product of two scales, which is 0 there; before FP8 it drops a Relu, and refuses a Clip. The first
# two give other probabilities without a word. Without these rewrites it computes what the file says.
_FOR_INTEGERS = ["ReluQuantRewrite", "ClipQuantRewrite"]
_NO_PAIRS = ("session.disable_quant_qdq", "1")
# Of a session's options, so that `nodes_elsewhere` can tell (ONNX Runtime 1.24 on; earlier releases do not mind).
WHO_COMPUTES_WHAT = ("session.record_ep_graph_assignment_info", "1")


class OnnxRuntimeBackend:
    """One CPU session that `workers` threads share, each with one picture on one thread; see `Backend`.

    One picture per thread, not one batch over all threads: there is nothing to wait for between the layers. On two
    shared cores this was 1.4 to 1.6 times ONNX Runtime's own settings with a batch of 8 (benchmarks/README.md), and
    a picture's answer cannot depend on the batch that it came in.
    """

    name = "onnx-cpu"
    device = "CPU, float32"
    batch_size = 1

    def __init__(self, session: Any, contract: ModelContract, version: str) -> None:
        check_graph(session, contract)
        self.contract = contract
        self.workers = cpu_count()
        self.version = f"ONNX Runtime {version}, float32"
        self._session = session
        self._input = session.get_inputs()[0].name
        self._output = session.get_outputs()[0].name

    def buffer(self, pictures: int) -> Pixels:
        """Ordinary memory."""
        return np.zeros((pictures, *self.contract.input.shape), np.uint8)

    def infer(self, pixels: Pixels) -> Probabilities:
        """(N, H, W, 3) uint8 RGB -> (N, L) float32 probabilities.

        Raises:
            BackendError: with ONNX Runtime's own words, if the run fails.
        """
        try:
            rows = [self._session.run([self._output], {self._input: row[None]})[0] for row in pixels]
        # Its exceptions have no common base class.
        except Exception as error:
            raise BackendError(f"{self.name} failed on a batch of {len(pixels)}: {first_line(error)}") from error
        return np.concatenate(rows)

    def close(self) -> None:
        """Drop the session, and with it the memory it holds."""
        self._session = None


def open_cpu(path: Path, settings: Settings = DEFAULT) -> OnnxRuntimeBackend:
    """Open a model on the CPU.

    Raises:
        BackendError: if onnxruntime is not installed or refuses the model, or a GPU or another precision is wanted.
        ContractError: if the file carries no contract, or another one than its graph.
    """
    contract = read_contract(path)
    refuse_devices("onnx-cpu", settings)
    if settings.precision not in ("auto", "float32"):
        raise BackendError(f"onnx-cpu computes in float32, not {settings.precision}: try --backend openvino")
    runtime = onnxruntime_with(CPU)
    options = runtime.SessionOptions()
    options.log_severity_level = _LOG_ERRORS
    options.intra_op_num_threads = 1
    session = make_session(runtime, path, options, [(CPU, {})])
    return OnnxRuntimeBackend(session, contract, runtime.__version__)


def refuse_devices(name: str, settings: Settings) -> None:
    """For engines that know only the processor.

    Raises:
        BackendError: if a GPU was asked for.
    """
    if settings.device is not None:
        raise BackendError(f"{name} runs on the processor and knows no device {settings.device}: leave out --devices")


def make_session(
    runtime: Any,
    path: Path,
    options: Any,
    providers: Sequence[tuple[str, Mapping[str, str]]],
    content: bytes | None = None,
) -> Any:
    """A session that truly runs on the first of the providers.

    Args:
        runtime: the module `onnxruntime`.
        path: of the model.
        options: of the session.
        providers: with their options.
        content: of the model, in the place of the file's.

    Raises:
        BackendError: if the model is refused, or another provider would run it.
    """
    wanted = providers[0][0]
    # Else it prints what went wrong and makes a session on the processor, for which the true reason is lost.
    more: dict[str, Any] = {"enable_fallback": 0}
    if needs_pairs_as_written(read_contract(path)):
        options.add_session_config_entry(*_NO_PAIRS)
        more["disabled_optimizers"] = _FOR_INTEGERS
    try:
        session = runtime.InferenceSession(content or str(path), options, providers=list(providers), **more)
    except Exception as error:  # its exceptions have no common base class
        raise BackendError(f"ONNX Runtime cannot open {path} on {wanted}: {first_line(error)}") from error
    if session.get_providers()[0] != wanted:
        raise BackendError(
            f"ONNX Runtime was asked for {wanted} and would run on {session.get_providers()[0]}: check the NVIDIA "
            f"driver (nvidia-smi) and that the CUDA and cuDNN libraries of onnxruntime-gpu {runtime.__version__} load"
        )
    return session


def needs_pairs_as_written(contract: ModelContract) -> bool:
    """Whether ONNX Runtime must leave the pairs of the file's QuantizeLinear and DequantizeLinear as they are."""
    numerics = contract.numerics
    return numerics.is_quantized and (numerics.has_float16 or numerics.precision == "float8")


def nodes_elsewhere(session: Any) -> str:
    """Which of the model's nodes another provider than the session's first computes, in words.

    Empty if there are none, and before ONNX Runtime 1.24, which does not tell.

    Args:
        session: made with `WHO_COMPUTES_WHAT`.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return ""
    wanted = session.get_providers()[0]
    kinds: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name != wanted:
            kinds.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return "; ".join(f"{name} computes {_counted(nodes)}" for name, nodes in kinds.items())


def _counted(nodes: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(nodes.items()))


def onnxruntime_with(provider: str) -> Any:
    """The module `onnxruntime`, if it is installed, only once, and knows the provider.

    Raises:
        BackendError: if not, with the command that mends it.
    """
    extra = "cpu" if provider == CPU else "gpu"
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f'ONNX Runtime does not load ({first_line(error)}): pip install "mineral-batch[{extra}]"'
        ) from error
    if provider in onnxruntime.get_available_providers():
        return onnxruntime
    if is_clash():
        raise BackendError(
            f"onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: {CLASH_FIX}"
        )
    raise BackendError(
        f"the installed ONNX Runtime {onnxruntime.__version__} has no {provider}: "
        f'pip uninstall -y onnxruntime, then pip install "mineral-batch[{extra}]"'
    )


CLASH_FIX = (
    "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu "
    "(or onnxruntime on a machine without an NVIDIA GPU)"
)


def is_clash() -> bool:
    """Whether the wheels for the CPU and for the GPU are both installed: one has overwritten the other's files."""
    installed = {str(one.name).lower() for one in metadata.distributions() if one.name}
    return {"onnxruntime", "onnxruntime-gpu"} <= installed


def check_graph(session: Any, contract: ModelContract) -> None:
    """See `mineral_batch.engines.graph.check`."""
    (pixels, *more), (probabilities, *_) = session.get_inputs(), session.get_outputs()
    described = [(_TYPES.get(one.type, one.type), list(one.shape)) for one in (pixels, probabilities)]
    graph.check(contract, *described, inputs=1 + len(more))


_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


def first_line(error: BaseException) -> str:
    """An engine's own words, without the lines of its source files."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
