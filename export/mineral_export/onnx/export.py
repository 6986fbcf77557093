"""A checkpoint becomes one ONNX file that describes itself, verified before it has its name."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from mineral_batch.explain.maps import MAPS_KEY
from mineral_batch.model.onnx_file import write_contract, write_metadata
from mineral_export import OPSET, TOLERANCE, TOP
from mineral_export.deployable import Deployable
from mineral_export.onnx.attention import ATTENTION_OPSET, as_one_operator
from mineral_export.onnx.explainable import OUTPUTS, DeployableWithMaps, require_same_maps
from mineral_export.verify import parity as verify
from mineral_export.verify.artefacts import open_artefact
from mineral_export.verify.gate import Exported, unproved

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_batch.model.contract import ModelContract
    from mineral_export.verify.parity import Parity, Samples
    from mineral_train.model.network import MineralNet

# Pictures whose maps are compared with torch's.
_MAPPED = 3


def export_onnx(
    model: MineralNet,
    contract: ModelContract,
    path: Path,
    *,
    opset: int = OPSET,
    pictures: Samples | None = None,
    tolerance: float = TOLERANCE,
    force: bool = False,
    explain: str | None = None,
    top: int = TOP,
) -> Exported:
    """Write `model` as an ONNX file: `pixels` (N, H, W, 3) uint8 in, `probabilities` (N, L) float32 out, any N.

    The file appears under its name only after ONNX Runtime gave the same answers from it as torch.

    Args:
        model: float32, on the CPU; put into eval mode.
        contract: embedded into the file.
        path: where to write.
        opset: of ONNX, 17 to 23; from 23 on a ViT's attention is one operator (see `attention`).
        pictures: to compare on; None for synthetic ones.
        tolerance: largest difference allowed between two probabilities; with labels the loss of mAP decides.
        force: write even what exceeds the budget.
        explain: one of `mineral_batch.explain.maps.METHODS` for a graph that also gives maps of where it looks (see
            `DeployableWithMaps`), equal to torch's; None for one without.
        top: how many maps a picture gets.

    Raises:
        ParityError: if the answers differ by more than the budget; nothing is written.
        DataError: if the file cannot be written, or the model has no such maps.
    """
    deployable = Deployable(model, contract.input)
    with_maps = DeployableWithMaps(model, contract.input, explain, top) if explain else None
    with unproved(path) as file:
        _trace(with_maps or deployable, file, contract, opset)
        write_contract(file, contract)
        if with_maps:
            write_metadata(file, {MAPS_KEY: with_maps.maps.to_json()})
            require_same_maps(with_maps, file, verify.synthetic(contract.input, _MAPPED))
        parity = _parity(deployable, file, pictures or verify.samples(contract), contract)
        if not force:
            parity.require(replace(verify.BUDGETS["float32"], largest=tolerance))
    return Exported(path, path.stat().st_size, parity)


def _trace(deployable: Deployable, path: Path, contract: ModelContract, opset: int) -> None:
    """Trace with a batch of 2 (1 would be taken for a constant) and write the graph with its weights inside."""
    example = torch.zeros(2, contract.input.height, contract.input.width, 3, dtype=torch.uint8)
    is_whole = opset >= ATTENTION_OPSET and not isinstance(deployable, DeployableWithMaps)  # those look inside
    with warnings.catch_warnings(), as_one_operator(deployable) if is_whole else nullcontext():
        warnings.simplefilter("ignore")  # the exporter's own: deprecations inside torch and copyreg
        torch.onnx.export(
            deployable,
            (example,),
            path,
            dynamo=True,
            opset_version=opset,
            input_names=["pixels"],
            output_names=OUTPUTS[: 3 if isinstance(deployable, DeployableWithMaps) else 1],
            dynamic_shapes={"pixels": {0: torch.export.Dim("N")}},
            external_data=False,
            verbose=False,
        )


def _parity(deployable: Deployable, path: Path, pictures: Samples, contract: ModelContract) -> Parity:
    with open_artefact(path) as written:
        return verify.compare(deployable.infer, written.answers, pictures, contract)
