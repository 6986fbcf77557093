"""Weights of a network rebuilt from the ONNX file that was exported from it.

`mineral-export onnx` keeps the parameters' names (`model.backbone. ...`). It folds each BatchNorm behind a convolution
into that convolution, so here such a BatchNorm becomes the identity with the folded bias. The function is the same; the
statistics are lost, and a run that begins here must not learn them again (`freeze_norm`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mineral_batch.errors import DataError, plain_reason
from mineral_train.model.network import MineralNet

_PREFIX = "model."
_HEAD = ("head.weight", "head.bias")


def load_onnx(model: MineralNet, path: Path, labels: Sequence[str]) -> int:
    """Fill a network from an exported file of the same architecture.

    The head's rows are matched by label; a label that the file does not know keeps its random row.

    Args:
        model: on the CPU; `pool` models only, because a decoder's label embeddings are folded away at export.
        path: the ONNX file.
        labels: of the file, in order.

    Returns:
        How many of the model's labels the file knew.

    Raises:
        DataError: if the file is of another architecture, or cannot be rebuilt.
    """
    values, folded = _read(path)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    known = _head_rows(state, values, model.config.labels, labels, path)
    chains, used = _run_once(model)
    done = set(_HEAD) | _unfold(model, chains, state, values, folded)
    for name in sorted(state.keys() - done):
        if name.endswith("num_batches_tracked") or name.rpartition(".")[0] not in used:
            continue
        value = values.get(_PREFIX + name)
        if value is None or value.shape != state[name].shape:
            raise DataError(
                f"cannot rebuild {model.config.backbone} from {path}: {name} is "
                f"{'missing' if value is None else tuple(value.shape)}; only exported CNNs that pool (as the starter "
                "does) can be rebuilt, with the same backbone, stages and image size; "
                "else give the checkpoint folder to --init"
            )
        state[name] = value
    model.load_state_dict(state)
    return known


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All constants of the graph by name, and the bias of each convolution by the name of its weight."""
    import onnx
    from onnx import numpy_helper

    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # protobuf's own errors
        raise DataError(f"cannot read {path} as ONNX: {plain_reason(error)}") from None
    values = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    folded = {
        node.input[1]: values[node.input[2]]
        for node in graph.node
        if node.op_type == "Conv" and len(node.input) > 2 and node.input[2] in values
    }
    return values, folded


def _head_rows(
    state: dict[str, Tensor], values: dict[str, Tensor], mine: Sequence[str], theirs: Sequence[str], path: Path
) -> int:
    """Copy the head's rows of the labels that both have."""
    for name in _HEAD:
        value = values.get(_PREFIX + name)
        if name not in state or value is None or value.shape[1:] != state[name].shape[1:] or len(value) != len(theirs):
            raise DataError(f"{path} has no linear head that fits this model: give a checkpoint folder to --init")
        for row, label in enumerate(mine):
            if label in theirs:
                state[name][row] = value[list(theirs).index(label)]
    return len(set(mine) & set(theirs))


def _unfold(
    model: MineralNet,
    chains: dict[str, list[str]],
    state: dict[str, Tensor],
    values: dict[str, Tensor],
    folded: dict[str, Tensor],
) -> set[str]:
    """Make the folded BatchNorm layers identities; return the names that are done."""
    done: set[str] = set()
    for convolution, chain in chains.items():
        norms = [name for name in chain if f"{_PREFIX}{name}.running_mean" not in values]
        bias = folded.get(f"{_PREFIX}{convolution}.weight")
        for place, name in enumerate(norms):
            norm: Any = model.get_submodule(name)
            identity = {
                "running_mean": torch.zeros_like(norm.running_mean),
                "running_var": torch.ones_like(norm.running_var) - norm.eps,
            }
            if norm.affine:
                identity["weight"] = torch.ones_like(norm.weight)
                identity["bias"] = torch.zeros_like(norm.bias)
                if place == 0 and bias is not None and norm.bias.shape == bias.shape:
                    identity["bias"] = bias
            for part, value in identity.items():
                state[f"{name}.{part}"] = value
                done.add(f"{name}.{part}")
    return done


def _run_once(model: MineralNet) -> tuple[dict[str, list[str]], set[str]]:
    """Run the model on one image to find how its layers follow each other.

    Returns:
        Each convolution with the BatchNorm layers that follow it directly; and the names of all layers that were used
        (a backbone whose last stages are taken does not use its final layers).
    """
    names = {module: name for name, module in model.named_modules()}
    source: dict[int, str] = {}
    chains: dict[str, list[str]] = {}
    used: set[str] = set()
    kept: list[Any] = []  # keeps the identities of tensors distinct

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        used.add(names[module])
        if isinstance(module, nn.Conv2d):
            chains[names[module]] = []
            source[id(output)] = names[module]
        elif isinstance(module, _BatchNorm) and id(inputs[0]) in source:
            convolution = source[id(inputs[0])]
            chains[convolution].append(names[module])
            source[id(output)] = convolution
        kept.append((inputs, output))

    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) or not list(m.children())]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    training = model.training
    size = model.config.image_size
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size))
    model.train(training)
    for handle in handles:
        handle.remove()
    return chains, used
