"""A form of a model gets its name only after its answers were compared with those of the form it was made from."""

from __future__ import annotations

import errno
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError
from mineral_batch.model.contract import Numerics
from mineral_batch.model.onnx_file import graph_digest, read_contract, write_contract
from mineral_export.verify import parity as verify
from mineral_export.verify.artefacts import open_artefact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mineral_batch.model.contract import ModelContract
    from mineral_export.verify.parity import Budget, Parity, Samples

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Exported:
    """A written file and the proof that it answers as what it was made from."""

    path: Path
    size: int
    parity: Parity


@contextmanager
def unproved(target: Path) -> Iterator[Path]:
    """A path of the target's name to write to, in a folder beside it; it becomes the target if the block ends well.

    Raises:
        DataError: if the target is a folder, or cannot be written where it is to be.
    """
    with _folder_beside(target) as folder:
        path = folder / target.name
        try:
            yield path
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise DataError(f"cannot write {target}: {error.strerror}; choose another place with -o") from None
        with _told_of(target):
            path.replace(target)


def require_place(target: Path) -> None:
    """Refuse before a long conversion what `unproved` would refuse after it.

    Raises:
        DataError: as of `unproved`.
    """
    with _folder_beside(target):
        pass


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """An empty folder in that of the target, as long as the block lasts."""
    with ExitStack() as stack:
        with _told_of(target):
            if target.is_dir():
                raise DataError(f"{target} is a folder: name the file with -o, such as {target / 'model.onnx'}")
            if not target.parent.is_dir():
                raise DataError(f"no such folder: {target.parent}; make it first or choose another with -o")
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=target.parent, prefix=".exporting-"))
        yield Path(folder)


@contextmanager
def _told_of(target: Path) -> Iterator[None]:
    """What the operating system refuses, in one line about the target and not about the folder beside it."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror or error}; choose another place with -o") from None


def derive(
    source: Path,
    target: Path,
    precision: str,
    convert: Callable[[Path, Path], None],
    *,
    pictures: Samples | None = None,
    budget: Budget | None = None,
    engine: str = "onnx-cpu",
    force: bool = False,
    unquantized: str = "float32",
    **provenance: object,
) -> Exported:
    """Write another precision of an ONNX file, compared with it on the same engine.

    Args:
        source: an ONNX file with a contract.
        target: where to write.
        precision: of the new file, for its contract: a name in `verify.BUDGETS`.
        convert: writes the new graph, `convert(source, target)`.
        pictures: to compare on; None for synthetic ones.
        budget: None for that of the precision.
        engine: that answers for both files.
        force: write even what exceeds the budget.
        unquantized: what a graph of 8 bits computes everything else in.
        **provenance: more facts for the contract.

    Raises:
        ParityError: if the answers differ by more than the budget; nothing is written.
        ContractError: if the source is no model.
        DataError: if the target cannot be written.
    """
    contract = read_contract(source)
    made = {"source_sha256": graph_digest(source), **provenance}
    with unproved(target) as path:
        convert(source, path)
        numerics = Numerics(precision, unquantized)
        write_contract(path, replace(_described(contract, precision, made), numerics=numerics))
        with open_artefact(f"{source}@{engine}") as one, open_artefact(f"{path}@{engine}") as other:
            parity = verify.compare(one.answers, other.answers, pictures or verify.samples(contract), contract)
        if not force:
            parity.require(budget or verify.BUDGETS[precision])
    return Exported(target, target.stat().st_size, parity)


def _described(contract: ModelContract, precision: str, made: dict[str, object]) -> ModelContract:
    """The source's contract; its accuracy was measured before the conversion, and says so."""
    measured = contract.measured
    if measured is not None:
        measured = replace(measured, dataset=f"{measured.dataset} (before the conversion to {precision})")
    return replace(contract, measured=measured, provenance={**contract.provenance, **made})
