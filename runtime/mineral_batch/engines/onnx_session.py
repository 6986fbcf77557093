"""What the engines of ONNX Runtime share: importing the right wheel, and sessions on the right provider.

`get_available_providers()` names CUDA on machines without a GPU, and a session asked for it then runs on the CPU
silently. Only `session.get_providers()[0]` of the finished session tells: that is checked.
"""

from __future__ import annotations

import re
from collections import Counter
from importlib import metadata
from typing import TYPE_CHECKING, Any

from mineral_batch.engines.base import check_signature
from mineral_batch.errors import BackendError
from mineral_batch.model.onnx_file import read_contract
from mineral_batch.system import pip_command, pip_install

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mineral_batch.model.contract import ModelContract

CPU = "CPUExecutionProvider"
LOG_ERRORS, LOG_FATAL = 3, 4

# ONNX Runtime 1.32 rewrites what it finds around QuantizeLinear as if float32 were rounded to integers: beside FP16 it
# rounds biases by a product of two scales, which is 0 there; before FP8 it drops a Relu, and refuses a Clip. The first
# two change probabilities silently. Without these rewrites it computes what the file says.
_INTEGER_REWRITES = ["ReluQuantRewrite", "ClipQuantRewrite"]
_NO_QDQ_REWRITES = ("session.disable_quant_qdq", "1")
#: A session's option, so that `nodes_elsewhere` can tell (ONNX Runtime 1.24 on; earlier releases ignore it).
RECORD_ASSIGNMENT = ("session.record_ep_graph_assignment_info", "1")

# Such as `/onnxruntime_src/core/x.cc:63 static void f(const T&) [ONNXRuntimeError] : 1 : FAIL : the reason`.
_SOURCE = re.compile(r"^/\S+:\d+ .*?(?=\[ONNXRuntimeError\])")
_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


def onnxruntime_with(provider: str) -> Any:
    """Import `onnxruntime`, and require that it is installed only once and has the provider.

    Raises:
        BackendError: if not, with the command that fixes it.
    """
    extra = "cpu" if provider == CPU else "gpu"
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(f"ONNX Runtime does not load ({first_line(error)}): {pip_install(extra)}") from error
    if provider in onnxruntime.get_available_providers():
        return onnxruntime
    if is_clash():
        raise BackendError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            f"{pip_command()} uninstall -y onnxruntime onnxruntime-gpu, then {pip_install('gpu')} "
            f"(or {pip_install('cpu')} without an NVIDIA GPU)"
        )
    raise BackendError(
        f"the installed ONNX Runtime {onnxruntime.__version__} has no {provider}: "
        f"{pip_command()} uninstall -y onnxruntime, then {pip_install(extra)}"
    )


def is_clash() -> bool:
    """Whether the wheels for the CPU and for the GPU are both installed: one has overwritten the other's files."""
    installed = {str(one.name).lower() for one in metadata.distributions() if one.name}
    return {"onnxruntime", "onnxruntime-gpu"} <= installed


def make_session(
    runtime: Any,
    path: Path,
    options: Any,
    providers: Sequence[tuple[str, Mapping[str, str]]],
    content: bytes | None = None,
) -> Any:
    """Create a session that really runs on the first of the providers.

    Args:
        runtime: the module `onnxruntime`.
        path: of the model.
        options: of the session.
        providers: with their options.
        content: of the model, instead of the file's.

    Raises:
        BackendError: if the model is refused, or another provider would run it.
    """
    wanted = providers[0][0]
    # Otherwise it prints what went wrong and makes a session on the CPU, which hides the reason.
    more: dict[str, Any] = {"enable_fallback": 0}
    if needs_pairs_as_written(read_contract(path)):
        options.add_session_config_entry(*_NO_QDQ_REWRITES)
        more["disabled_optimizers"] = _INTEGER_REWRITES
    try:
        session = runtime.InferenceSession(content or str(path), options, providers=list(providers), **more)
    except Exception as error:  # its exceptions have no common base class
        raise BackendError(f"ONNX Runtime cannot open {path} on {wanted}: {first_line(error)}") from error
    if session.get_providers()[0] != wanted:
        raise BackendError(
            f"ONNX Runtime would run on {session.get_providers()[0]} and not {wanted}: {_why(runtime, wanted)}"
        )
    return session


def _why(runtime: Any, provider: str) -> str:
    """Why the session is on another provider, which ONNX Runtime does not raise."""
    from mineral_batch.cuda.libraries import why_provider_does_not_load

    return why_provider_does_not_load(runtime, provider) or "it gives no reason; see nvidia-smi for the NVIDIA driver"


def needs_pairs_as_written(contract: ModelContract) -> bool:
    """Whether ONNX Runtime must leave the file's pairs of QuantizeLinear and DequantizeLinear as they are."""
    numerics = contract.numerics
    return numerics.is_quantized and (numerics.has_float16 or numerics.precision == "float8")


def nodes_elsewhere(session: Any) -> str:
    """Name the nodes that another provider than the session's first computes; empty if there are none.

    Also empty before ONNX Runtime 1.24, which does not tell.

    Args:
        session: made with `RECORD_ASSIGNMENT`.
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


def check_graph(session: Any, contract: ModelContract) -> None:
    """Require the graph that the contract describes: see `mineral_batch.engines.base.check_signature`."""
    (pixels, *more), (probabilities, *_) = session.get_inputs(), session.get_outputs()
    described = [(_TYPES.get(one.type, one.type), list(one.shape)) for one in (pixels, probabilities)]
    check_signature(contract, *described, inputs=1 + len(more))


def first_line(error: BaseException) -> str:
    """The first line of an engine's error, without the source file and function that ONNX Runtime may begin it with."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return _SOURCE.sub("", line)
