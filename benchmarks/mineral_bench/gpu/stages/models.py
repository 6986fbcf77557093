"""What is measured: the paper's model as ONNX files, and folders of photographs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mineral_bench.gpu import subjects
from mineral_bench.gpu.settings import GRAPHS

if TYPE_CHECKING:
    from mineral_bench.gpu.record import Record
    from mineral_bench.gpu.settings import Settings


def photographs(settings: Settings, record: Record) -> None:
    """Write folders of JPEGs as small as a data set's and as large as a camera's."""
    subjects.write_folders(settings)
    record.save(photographs={name: f"{count} JPEGs" for name, count in settings.sizes.photos.items()})


def models(settings: Settings, record: Record) -> None:
    """Export the paper's model with random weights in float32 and FP16, and count its operations.

    Raises:
        ArithmeticError: in a dry run, if the graph and torch count different operations.
    """
    from mineral_export.onnx.export import export_onnx
    from mineral_export.precision.fp16 import to_fp16

    settings.models.mkdir(exist_ok=True)
    model, contract = subjects.paper_model(settings.sizes)
    plain = settings.model("float32")
    if not (record.has("float32_parity") and plain.is_file()):
        exported = export_onnx(model.model, contract, plain, force=True)
        record.save(float32_mb=exported.size / 1e6, float32_parity=str(exported.parity))
    counted, in_graph = _counted_by_torch(model, contract), subjects.gflop(plain)
    record.save(gflop_per_picture=in_graph, gflop_counted_by_torch=counted, input=list(contract.input.shape))
    if settings.sizes.dry and not math.isclose(counted, in_graph, rel_tol=1e-6):
        raise ArithmeticError(f"torch counts {counted} GFLOP a picture, the graph has {in_graph}")
    half = to_fp16(plain, settings.model("float16"), force=True)
    record.save(float16_mb=half.size / 1e6, float16_parity_on_the_cpu=str(half.parity))


def _counted_by_torch(model: Any, contract: Any) -> float:
    """Count the operations of one image in 10^9; fused attention would count as nothing, so it is not fused."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(subjects.device_noise(contract, 1, "cpu"))
    return counter.get_total_flops() / 1e9


def attention(settings: Settings, record: Record) -> None:
    """Export the same model with each attention of the backbone as one operator (opset 23).

    Raises:
        RuntimeError: if the graph has no such operator.
    """
    import onnx

    from mineral_export.onnx.defaults import ATTENTION_OPSET
    from mineral_export.onnx.export import export_onnx
    from mineral_export.precision.fp16 import to_fp16

    model, contract = subjects.paper_model(settings.sizes)
    name = GRAPHS[", Attention nodes"]
    plain = settings.model("float32", name)
    exported = export_onnx(model.model, contract, plain, opset=ATTENTION_OPSET, force=True)
    record.save(float32_parity=str(exported.parity))
    half = to_fp16(plain, settings.model("float16", name), force=True)
    nodes = [node.op_type for node in onnx.load(half.path, load_external_data=False).graph.node]
    record.save(float16_parity_on_the_cpu=str(half.parity), attention_nodes=nodes.count("Attention"))
    if "Attention" not in nodes:
        half.path.unlink()
        raise RuntimeError("the exporter wrote no Attention operator")
