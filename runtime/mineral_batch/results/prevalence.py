"""Correct calibrated probabilities for other prevalences than those of the images that calibrated the model.

A mine's images show other minerals than the training set. If the images of a mineral look the same in both, only its
base rate differs, and the correction is known (label shift: Saerens, Latinne and Decaestecker 2002, Neural Computation
14, 21): the odds of every answer are multiplied by the ratio of the prevalences' odds. Each mineral is corrected by
itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mineral_batch.errors import ContractError, DataError
from mineral_batch.minerals import canonical
from mineral_batch.model.calibration import calibrate_command, log_odds
from mineral_batch.model.contract import ModelContract
from mineral_batch.results.csv import listed, open_csv, shown
from mineral_batch.types import Prediction, Result

ESTIMATE = "estimate"

_COLUMN_NAMES = {
    **dict.fromkeys(("mineral", "label", "name"), "mineral"),
    **dict.fromkeys(("prevalence", "share", "frequency"), "prevalence"),
}
_LARGEST_STEP = 1e-7
_STEPS = 500

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PrevalenceShift:
    """A correction from one set of prevalences to another.

    Attributes:
        source: where the new ones come from: `estimate`, or the name of a file.
        labels: L.
        trained: (L,) prevalences that the probabilities were calibrated for.
        target: (L,) prevalences to correct for.
    """

    source: str
    labels: tuple[str, ...]
    trained: Floats
    target: Floats

    def __call__(self, results: Iterable[Result]) -> Iterator[Result]:
        """Yield the results with corrected probabilities; failures as they are."""
        change = log_odds(self.target) - log_odds(self.trained)
        for result in results:
            if isinstance(result, Prediction):
                moved = _shifted(result.probabilities[None], change)[0].astype(np.float32)
                result = replace(result, probabilities=moved)  # noqa: PLW2901
            yield result

    def record(self) -> dict[str, Any]:
        """Return what run.json says of it."""
        values = zip(self.labels, self.trained.tolist(), self.target.tolist(), strict=True)
        return {
            "source": self.source,
            "minerals": {label: {"trained": _digits(old), "here": _digits(new)} for label, old, new in values},
        }


def require_calibrated(contract: ModelContract, model: str | Path) -> None:
    """Check before a run that its probabilities can be corrected.

    Raises:
        ContractError: if the model is not calibrated, with the command that calibrates it.
    """
    if not contract.is_calibrated:
        raise ContractError(
            f"--prevalence needs probabilities that mean what they say, and {model} is not calibrated: "
            f"{calibrate_command(model)}"
        )


def shift_to_file(contract: ModelContract, path: str | Path) -> PrevalenceShift:
    """Make the correction for the prevalences in a file; minerals that it does not name keep theirs.

    Args:
        contract: of a calibrated model.
        path: CSV with the columns `mineral` and `prevalence`, a number 0..1.

    Raises:
        DataError: if the file is wrong, naming the line.
    """
    given = read_prevalences(path, contract.labels)
    trained = trained_prevalences(contract)
    target = np.array([given.get(label, old) for label, old in zip(contract.labels, trained.tolist(), strict=True)])
    return PrevalenceShift(str(path), contract.labels, trained, target)


def require_prevalences(path: str | Path) -> None:
    """Check what can be checked of a table of prevalences without a model.

    Raises:
        DataError: if there is no such file, or it has not the columns.
    """
    columns = ("mineral", "prevalence")
    with open_csv(path, columns, sniff=columns, synonyms=_COLUMN_NAMES):
        pass


def read_prevalences(path: str | Path, labels: tuple[str, ...]) -> Mapping[str, float]:
    """Read a table of prevalences: label -> 0..1.

    Raises:
        DataError: if the file is wrong, naming the line.
    """
    found: dict[str, float] = {}
    columns = ("mineral", "prevalence")
    with open_csv(path, columns, sniff=columns, synonyms=_COLUMN_NAMES) as table:
        at, value = (table.index(name) for name in columns)
        for line, fields in table:
            label = canonical(fields[at].strip(), labels)
            if label is None:
                raise DataError(
                    f"{path} line {line}: {shown(fields[at])!r} is not a mineral of the model; it has {listed(labels)}"
                )
            if label in found:
                raise DataError(f"{path} line {line}: {label} comes twice")
            found[label] = _fraction(fields[value], f"{path} line {line}")
    if not found:
        raise DataError(f"{path} has a header and no rows")
    return found


def shift_by_estimate(contract: ModelContract, results: Iterable[Result]) -> PrevalenceShift:
    """Estimate the prevalences of these images from the model's own answers, by expectation maximization.

    A prevalence is the mean of the probabilities that it corrects; the fixed point is found by iteration (Saerens et
    al. 2002, equation 9). Besides the images counts one with the old prevalence, so that a mineral that none of a few
    images shows does not become impossible.

    Args:
        contract: of a calibrated model.
        results: of the images.
    """
    trained = trained_prevalences(contract)
    rows = [result.probabilities for result in results if isinstance(result, Prediction)]
    if not rows:
        return PrevalenceShift(ESTIMATE, contract.labels, trained, trained)
    probabilities, target = np.stack(rows).astype(np.float64), trained
    for _ in range(_STEPS):
        corrected = _shifted(probabilities, log_odds(target) - log_odds(trained))
        before, target = target, (corrected.sum(axis=0) + trained) / (len(rows) + 1)
        if np.abs(target - before).max() < _LARGEST_STEP:
            break
    return PrevalenceShift(ESTIMATE, contract.labels, trained, target)


def trained_prevalences(contract: ModelContract) -> Floats:
    """(L,) prevalences that a calibrated model's probabilities are for; half an image stands for none."""
    assert contract.calibration is not None
    count = np.array(contract.calibration.positives, np.float64)
    prevalences: Floats = (count + 0.5) / (contract.calibration.images + 1)
    return prevalences


def _shifted(probabilities: NDArray[np.floating], change: Floats) -> Floats:
    """Probabilities (N, L) with `change` (L,) added to their log odds."""
    p = np.asarray(probabilities, np.float64)
    ratio = np.exp(change)
    shifted: Floats = p * ratio / (1 - p + p * ratio)
    return shifted


def _fraction(text: str, where: str) -> float:
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise DataError(f"{where}: {shown(text)!r} is not a prevalence, a number from 0 to 1")
    return value


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
