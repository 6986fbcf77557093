"""What is measured: the paper's model with random weights, images, folders of JPEGs, and a graph's operations."""

from __future__ import annotations

import shutil
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_bench.gpu.settings import Settings, Sizes


def paper_model(sizes: Sizes) -> tuple[Any, Any]:
    """Return the paper's model with random weights as it is exported, and its contract."""
    import torch

    from mineral_batch.minerals import MINERALS
    from mineral_batch.model.contract import ModelContract
    from mineral_export.export_model import ExportModel
    from mineral_train.model.network import PRESETS, ModelConfig, build_model, input_spec

    tiny: dict[str, Any] = {
        "image_size": 32,
        "projection": "linear",
        "width": 32,
        "heads": 2,
        "ffn": 48,
        "labels": MINERALS,
    }
    config = PRESETS[sizes.preset] if sizes.preset else ModelConfig("test_vit", **tiny)
    model = build_model(config, seed=0)
    with torch.no_grad():  # at initialization every probability is near 0.5, and parity would prove little
        for parameter in model.head.parameters():
            parameter.mul_(8)
    contract = ModelContract(MINERALS, (0.5,) * len(MINERALS), input_spec(config), name="random weights")
    return ExportModel(model, contract.input), contract


def device_noise(contract: Any, batch: int, device: str) -> Any:
    """Return (N, H, W, 3) uint8 noise on the device."""
    import torch

    return torch.randint(0, 256, (batch, *contract.input.shape), dtype=torch.uint8, device=device)


def images(settings: Settings, contract: Any, count: int) -> tuple[Any, str]:
    """Return (N, H, W, 3) uint8 to verify on or to calibrate with, and what they are: the user's, or synthetic."""
    from mineral_export.verify.samples import first_images, synthetic_images

    if settings.photos is None:
        return synthetic_images(contract.input, count), "synthetic images"
    return first_images([settings.photos], contract.input, count), f"photographs of {settings.photos.name}"


def write_folders(settings: Settings) -> None:
    """Write two folders of JPEGs, each whole or not at all, if they do not exist."""
    from mineral_bench.images import write_photographs

    sizes = settings.sizes
    shapes = {"384": (384, 384), "12MP": (sizes.large, sizes.large * 3 // 4)}
    for name, count in sizes.photos.items():
        if settings.has_photographs(name):
            continue
        folder = settings.folder(name)
        scratch = folder.with_name(f"{name}.part")
        for old in (folder, scratch):
            shutil.rmtree(old, ignore_errors=True)
        scratch.mkdir(parents=True)
        write_photographs(scratch, count, shapes[name], sizes.different)
        scratch.rename(folder)


def gflop(model: Path) -> float:
    """Count the operations of an ONNX graph's convolutions, matrix products and attentions for one image, in 10^9.

    A multiplication and an addition are 2.

    Raises:
        ValueError: if a shape is unknown.
    """
    import onnx

    loaded = onnx.load(model)
    loaded.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    del loaded.graph.value_info[:]  # they say N where there is now one image
    for value in loaded.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(loaded, data_prop=True).graph
    shapes = {weight.name: list(weight.dims) for weight in graph.initializer}
    for value in [*graph.input, *graph.output, *graph.value_info]:
        shapes[value.name] = [size.dim_value for size in value.type.tensor_type.shape.dim]
    return sum(_operations(node, shapes) for node in graph.node) / 1e9


def _operations(node: Any, shapes: dict[str, list[int]]) -> int:
    if node.op_type not in ("Conv", "MatMul", "Gemm", "Attention"):
        return 0
    given, weights, out = (shapes.get(name, []) for name in (node.input[0], node.input[1], node.output[0]))
    if not out or not all(out) or not weights:
        raise ValueError(f"the shape of {node.output[0]} is unknown")
    if node.op_type == "Conv":  # weights (out, in / groups, height, width)
        return 2 * prod(out) * prod(weights[1:])
    if node.op_type == "Attention":  # queries (.., S, d), keys (.., T, d): each query meets each key and value
        return 2 * (prod(given) + prod(out)) * weights[-2]
    is_transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2 * prod(out) * given[-2 if is_transposed else -1]
