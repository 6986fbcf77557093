"""How many layers of a network or an engine compute in which precision."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mineral_batch.cuda.probe import DriverError, gpus

if TYPE_CHECKING:
    from mineral_batch.engines.tensorrt.library import Library

# TensorRT's names of its types, and its inspector's words for them, as this project names precisions.
_TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "FP8": "float8", "FP4": "float4"}
_WORDS = {"float": "float32", "fp32": "float32", "half": "float16", "fp16": "float16", "bf16": "bfloat16"}
_WORDS |= {"bfloat16": "bfloat16", "int8": "int8", "fp8": "float8", "fp4": "float4"}
_PRODUCTS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM", "ATTENTION_INPUT")
# Layers that give the same numbers in another shape.
_RESHAPES = ("SHUFFLE", "SQUEEZE", "UNSQUEEZE", "IDENTITY")
MIXED = "mixed"


@dataclass(frozen=True)
class Layers:
    """How many layers there are of each precision.

    Attributes:
        products: convolutions and matrix products, where the time goes.
        all: layers with a floating point or quantized output.
        of: `engine` or `typed network`.
    """

    products: dict[str, int]
    all: dict[str, int] = field(default_factory=dict)
    of: str = "typed network"

    @property
    def precision(self) -> str:
        """Of the products, if they agree, else `mixed`."""
        return next(iter(self.products)) if len(self.products) == 1 else MIXED


def network_layers(network: Any) -> Layers:
    """Count the layers that the network's outputs need by the types that it gives them.

    What computes an output that was dropped, such as the familiarity, stays in the network and leaves no kernel. A
    product of what was dequantized just before is one in the quantized type: TensorRT fuses the two.
    """
    counts: Counter[str] = Counter()
    products: Counter[str] = Counter()
    quantized: dict[str, str] = {}
    for layer in _needed(network):
        kind = layer.type.name
        source = layer.get_input(0) if layer.num_inputs else None  # an optional one is None, too
        type_in = quantized.get(source.name, type_name(source)) if source else ""
        if kind in _PRODUCTS:
            products[type_in] += 1
        if kind == "DEQUANTIZE" or (kind in _RESHAPES and source and source.name in quantized):
            quantized[layer.get_output(0).name] = type_in
        if layer.num_outputs and layer.get_output(0).dtype.name in _TYPES and kind != "CONSTANT":
            counts[type_name(layer.get_output(0))] += 1
    return Layers(dict(products), dict(counts))


def _needed(network: Any) -> list[Any]:
    """The layers that the outputs depend on, in the network's order, in which each comes behind its inputs."""
    wanted = {network.get_output(index).name for index in range(network.num_outputs)}
    layers = []
    for index in reversed(range(network.num_layers)):
        layer = network.get_layer(index)
        if wanted.intersection(layer.get_output(number).name for number in range(layer.num_outputs)):
            inputs = (layer.get_input(number) for number in range(layer.num_inputs))
            wanted.update(tensor.name for tensor in inputs if tensor is not None)
            layers.append(layer)
    return layers[::-1]


def engine_layers(library: Library, plan: bytes, network: Layers) -> Layers | None:
    """Count the layers of an engine by its inspector; None where there is no GPU to load it on, or it lists none.

    Args:
        library: the TensorRT that built it.
        plan: the engine.
        network: the layers of its network; its products are kept, as a fused layer's name does not show one.
    """
    try:
        gpus()
    except DriverError:
        return None
    trt = library.module
    try:
        runtime = trt.Runtime(library.messages().logger)
    except TypeError:  # it does not start: what its bindings make of a null pointer
        return None
    runtime.engine_host_code_allowed = True  # a version compatible plan brings a runtime of its own
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:  # built for another chip
        return None
    listing = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    counts = inspected(listing)
    return Layers(network.products, counts, "engine") if counts else None


def inspected(listing: str) -> dict[str, int]:
    """Count the layers in the inspector's JSON by the precision of their first output.

    Each output has a `Format/Datatype`, whose words differ between releases: `Half`, `Row major linear FP16 format`.
    """
    counts: Counter[str] = Counter()
    for layer in json.loads(listing).get("Layers", []):
        outputs = layer.get("Outputs", []) if isinstance(layer, dict) else []
        words = (
            str(outputs[0].get("Format/Datatype", outputs[0].get("Datatype", ""))).lower().split() if outputs else []
        )
        counts.update([precision for word in words if (precision := _WORDS.get(word))][:1])
    return dict(counts)


def type_name(tensor: Any) -> str:
    """The type of a tensor, as this project names precisions."""
    name: str = tensor.dtype.name
    return _TYPES.get(name, name.lower())
