"""A checkpoint becomes one ONNX file that describes itself, verified before it has its name."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mineral_batch._onnx_file import write_contract
from mineral_batch.backends.onnx_runtime import open_cpu
from mineral_batch.errors import DataError
from mineral_export import OPSET, TOLERANCE, verify
from mineral_export.deployable import Deployable

if TYPE_CHECKING:
    from mineral_batch.contract import ModelContract
    from mineral_batch.images import Pixels
    from mineral_batch.pipeline import Probabilities
    from mineral_export.verify import Parity
    from mineral_train.model import MineralNet


@dataclass(frozen=True)
class Exported:
    """A written ONNX file and the proof that it answers as the checkpoint does."""

    path: Path
    size: int
    parity: Parity


def export_onnx(
    model: MineralNet,
    contract: ModelContract,
    path: Path,
    *,
    opset: int = OPSET,
    pictures: tuple[Pixels, str] | None = None,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write `model` as an ONNX file: `pixels` (N, H, W, 3) uint8 in, `probabilities` (N, L) float32 out, any N.

    The file appears under its name only after ONNX Runtime gave the same answers from it as torch.

    Args:
        model: float32, on the CPU; put into eval mode.
        contract: embedded into the file.
        path: where to write.
        opset: of ONNX, 17 to 23.
        pictures: (N, H, W, 3) uint8 to compare on, and what they are in words; None for synthetic ones.
        tolerance: largest difference allowed between two probabilities.

    Raises:
        ParityError: if the answers differ by more than `tolerance`; nothing is written.
        DataError: if the file cannot be written.
    """
    if not path.parent.is_dir():
        raise DataError(f"no such folder: {path.parent}; make it first or choose another with -o")
    pixels, what = pictures or (verify.synthetic(contract.input), "synthetic pictures")
    deployable = Deployable(model, contract.input)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".exporting-") as folder:
        unproved = Path(folder, path.name)
        _trace(deployable, unproved, contract, opset)
        write_contract(unproved, contract)
        parity = _parity(deployable, unproved, pixels, what)
        parity.require(tolerance)
        unproved.replace(path)
    return Exported(path, path.stat().st_size, parity)


def _trace(deployable: Deployable, path: Path, contract: ModelContract, opset: int) -> None:
    """Trace with a batch of 2 (1 would be taken for a constant) and write the graph with its weights inside."""
    example = torch.zeros(2, contract.input.height, contract.input.width, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own: deprecations inside torch and copyreg
        torch.onnx.export(
            deployable,
            (example,),
            path,
            dynamo=True,
            opset_version=opset,
            input_names=["pixels"],
            output_names=["probabilities"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("N")}},
            external_data=False,
            verbose=False,
        )


def _parity(deployable: Deployable, path: Path, pixels: Pixels, what: str) -> Parity:
    def reference(batch: Pixels) -> Probabilities:
        with torch.inference_mode():
            answers: Probabilities = deployable(torch.from_numpy(batch)).numpy()
        return answers

    backend = open_cpu(path)
    try:
        return verify.compare(reference, backend.infer, pixels, what)
    finally:
        backend.close()
