"""Export a checkpoint to one self-describing ONNX file, verified before it gets its name."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from mineral_batch.explain.maps import MAPS_KEY
from mineral_batch.model.onnx_file import write_contract, write_metadata
from mineral_export.export_model import ExportModel
from mineral_export.onnx.attention import as_one_operator
from mineral_export.onnx.defaults import ATTENTION_OPSET, OPSET, TOP
from mineral_export.onnx.with_maps import OUTPUTS, ExportModelWithMaps, require_same_maps
from mineral_export.verify.artifacts import open_artifact
from mineral_export.verify.budget import BUDGETS, TOLERANCE
from mineral_export.verify.convert import ExportedFile
from mineral_export.verify.parity import compare
from mineral_export.verify.samples import load_samples, synthetic_images
from mineral_export.verify.staging import staged_output

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_batch.model.contract import ModelContract
    from mineral_export.verify.samples import Samples
    from mineral_train.model.network import MineralNet

# Images whose maps are compared with torch's.
_MAPPED = 3


def export_onnx(
    model: MineralNet,
    contract: ModelContract,
    path: Path,
    *,
    opset: int = OPSET,
    samples: Samples | None = None,
    tolerance: float = TOLERANCE,
    force: bool = False,
    explain: str | None = None,
    top: int = TOP,
) -> ExportedFile:
    """Write `model` as an ONNX file: `pixels` (N, H, W, 3) uint8 in, `probabilities` (N, L) float32 out, any N.

    The file appears under its name only after ONNX Runtime gave torch's probabilities from it.

    Args:
        model: float32, on the CPU; put into eval mode.
        contract: embedded into the file.
        path: where to write.
        opset: of ONNX, 17 to 23; from 23 on a ViT's attention is one operator (see `attention`).
        samples: images to compare on; None for synthetic ones.
        tolerance: largest difference of a probability; with labels the loss of mAP decides instead.
        force: write the file even if it exceeds the budget.
        explain: one of `mineral_batch.explain.maps.METHODS` to add maps of where the model looks to the graph (see
            `ExportModelWithMaps`), equal to torch's; None for a graph without maps.
        top: maps for each image.

    Raises:
        ParityError: if the probabilities differ by more than the budget; nothing is written.
        DataError: if the file cannot be written, or the model has no such maps.
    """
    plain = ExportModel(model, contract.input)
    with_maps = ExportModelWithMaps(model, contract.input, explain, top) if explain else None
    with staged_output(path) as file:
        _trace(with_maps or plain, file, contract, opset)
        write_contract(file, contract)
        if with_maps:
            write_metadata(file, {MAPS_KEY: with_maps.maps.to_json()})
            require_same_maps(with_maps, file, synthetic_images(contract.input, _MAPPED))
        with open_artifact(file) as written:
            parity = compare(plain.infer, written.predict, samples or load_samples(contract), contract)
        if not force:
            parity.require(replace(BUDGETS["float32"], largest=tolerance))
    return ExportedFile(path, path.stat().st_size, parity)


def _trace(model: ExportModel, path: Path, contract: ModelContract, opset: int) -> None:
    """Trace with a batch of 2 (1 would become a constant) and write the graph with its weights inside."""
    example = torch.zeros(2, contract.input.height, contract.input.width, 3, dtype=torch.uint8)
    has_maps = isinstance(model, ExportModelWithMaps)  # maps need the attention's inside
    with (
        warnings.catch_warnings(),
        as_one_operator(model) if opset >= ATTENTION_OPSET and not has_maps else nullcontext(),
    ):
        warnings.simplefilter("ignore")  # the exporter's own: deprecations inside torch and copyreg
        torch.onnx.export(
            model,
            (example,),
            path,
            dynamo=True,
            opset_version=opset,
            input_names=["pixels"],
            output_names=OUTPUTS if has_maps else OUTPUTS[:1],
            dynamic_shapes={"pixels": {0: torch.export.Dim("N")}},
            external_data=False,
            verbose=False,
        )
