"""What a user wants changed in the probabilities before they are written: corrected for prevalences, rounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from mineral_batch.model.contract import ModelContract
from mineral_batch.results.prevalence import (
    ESTIMATE,
    PrevalenceShift,
    require_calibrated,
    shift_by_estimate,
    shift_to_file,
)
from mineral_batch.results.rows import rounded
from mineral_batch.results.write import Tables
from mineral_batch.types import Result


def check_prevalence(contract: ModelContract, model: Path, tables: Tables) -> None:
    """Find before the images are predicted what would stop the correction for prevalences.

    Raises:
        ContractError: if the model is not calibrated.
        DataError: if the file of prevalences is wrong.
    """
    if tables.prevalence is not None:
        require_calibrated(contract, model)
        if tables.prevalence != ESTIMATE:
            shift_to_file(contract, tables.prevalence)


def prevalence_shift(
    contract: ModelContract, tables: Tables, results: Callable[[], Iterable[Result]]
) -> PrevalenceShift | None:
    """Return the correction that the tables want, estimated from the results or read from a file."""
    if tables.prevalence is None:
        return None
    if tables.prevalence == ESTIMATE:
        return shift_by_estimate(contract, results())
    return shift_to_file(contract, tables.prevalence)


def adjusted(results: Iterable[Result], shift: PrevalenceShift | None, tables: Tables) -> Iterable[Result]:
    """Return the results with the probabilities as the tables have them."""
    if shift is not None:
        results = shift(results)
    return results if tables.decimals is None else rounded(results, tables.decimals)
