"""Write another precision of an ONNX file, and keep it only if its output is that of the source, within a budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mineral_batch.model.contract import Numerics
from mineral_batch.model.onnx_file import graph_digest, read_contract, write_contract
from mineral_export.verify.artifacts import open_artifact
from mineral_export.verify.budget import BUDGETS
from mineral_export.verify.parity import compare
from mineral_export.verify.samples import load_samples
from mineral_export.verify.staging import staged_output

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mineral_batch.model.contract import ModelContract
    from mineral_export.verify.budget import Budget
    from mineral_export.verify.parity import Parity
    from mineral_export.verify.samples import Samples


@dataclass(frozen=True)
class ExportedFile:
    """A written file.

    Attributes:
        path: where it is.
        size: bytes.
        parity: how far its output lies from its source's.
    """

    path: Path
    size: int
    parity: Parity


def convert_and_verify(
    source: Path,
    target: Path,
    precision: str,
    convert: Callable[[Path, Path], None],
    *,
    samples: Samples | None = None,
    budget: Budget | None = None,
    engine: str = "onnx-cpu",
    force: bool = False,
    unquantized: str = "float32",
    **provenance: object,
) -> ExportedFile:
    """Convert an ONNX file, compare the result with the source on the same engine, and write it.

    Args:
        source: an ONNX file with a contract.
        target: where to write.
        precision: the new file's, a name in `BUDGETS`.
        convert: writes the new graph, `convert(source, target)`.
        samples: images to compare on; None for synthetic ones.
        budget: None for the precision's.
        engine: runs both files.
        force: write the file even if it exceeds the budget.
        unquantized: precision of everything else in a graph of 8 bits.
        **provenance: more facts for the contract.

    Raises:
        ParityError: if the output differs by more than the budget; nothing is written.
        ContractError: if the source is not a model with a contract.
        DataError: if the target cannot be written.
    """
    contract = read_contract(source)
    facts = {"source_sha256": graph_digest(source), **provenance}
    with staged_output(target) as path:
        convert(source, path)
        numerics = Numerics(precision, unquantized)
        write_contract(path, replace(_converted_contract(contract, precision, facts), numerics=numerics))
        with open_artifact(f"{source}@{engine}") as one, open_artifact(f"{path}@{engine}") as other:
            parity = compare(one.predict, other.predict, samples or load_samples(contract), contract)
        if not force:
            parity.require(budget or BUDGETS[precision])
    return ExportedFile(target, target.stat().st_size, parity)


def _converted_contract(contract: ModelContract, precision: str, facts: dict[str, object]) -> ModelContract:
    """Return the source's contract; its accuracy was measured before the conversion, and says so."""
    measured = contract.measured
    if measured is not None:
        measured = replace(measured, dataset=f"{measured.dataset} (before the conversion to {precision})")
    return replace(contract, measured=measured, provenance={**contract.provenance, **facts})
