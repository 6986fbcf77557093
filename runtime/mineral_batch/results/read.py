"""The output folder of a run, in memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.errors import DataError, plain_reason
from mineral_batch.images.limits import MAX_PIXELS
from mineral_batch.minerals import MINERALS
from mineral_batch.results.csv import open_csv
from mineral_batch.results.predictions import Predictions, read_predictions
from mineral_batch.results.schema import (
    DAMAGED_COLUMN,
    FAILURE_COLUMNS,
    FAILURES,
    LEADING,
    PARTIAL,
    PREDICTIONS,
    RUN_MANIFEST,
)
from mineral_batch.results.written import edited_tables
from mineral_batch.types import Failure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

ASSUMED_THRESHOLD = 0.5


@dataclass(frozen=True)
class Results:
    """The tables of one run.

    Attributes:
        table: the file that was read: predictions.csv, or predictions.partial.csv of a run that was stopped.
        predictions: N images, L labels.
        thresholds: (L,) of the model; `ASSUMED_THRESHOLD` where run.json does not say.
        knows_thresholds: whether run.json says.
        captured: N, ISO 8601; empty where it is not known or not in the table.
        places: (N, 2) latitude and longitude in degrees, NaN where they are not known.
        familiarity: (N,) share of the training images that look stranger, NaN where it is not in the table.
        damaged: N, why only a part of an image could be decoded; empty of a whole one.
        failures: the images without a prediction.
        manifest: run.json; empty for a run that was stopped.
        edited: names of the tables that were changed since the run wrote them.
    """

    table: Path
    predictions: Predictions
    thresholds: NDArray[np.float64]
    knows_thresholds: bool
    captured: tuple[str, ...]
    places: NDArray[np.float64]
    familiarity: NDArray[np.float64]
    failures: tuple[Failure, ...]
    manifest: Mapping[str, Any]
    edited: tuple[str, ...] = ()
    damaged: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.damaged:
            object.__setattr__(self, "damaged", ("",) * len(self.predictions.paths))

    @property
    def has_places(self) -> bool:
        """Whether any image says where it was taken."""
        return bool(np.isfinite(self.places).all(axis=1).any())

    @property
    def max_pixels(self) -> int:
        """The largest image that the run decoded, pixels."""
        options = self.manifest.get("options")
        limit = options.get("max_pixels") if isinstance(options, dict) else None
        return limit if isinstance(limit, int) else MAX_PIXELS


def table_in(folder: Path) -> Path:
    """Find the table of predictions in an output folder of `predict`, also of a run that was stopped.

    Raises:
        DataError: if there is none.
    """
    table = next((folder / name for name in (PREDICTIONS, PARTIAL) if (folder / name).is_file()), None)
    if table is None:
        raise DataError(f"no {PREDICTIONS} in {folder}: name the output folder of mineral-batch predict")
    return table


def read_results(folder: str | Path) -> Results:
    """Read the output folder of `predict`, also of a run that was stopped.

    Raises:
        DataError: if there are no tables, or one is damaged.
    """
    folder = Path(folder)
    if folder.name in (PREDICTIONS, PARTIAL) and folder.is_file():
        folder = folder.parent  # the table itself was named
    table = table_in(folder)
    manifest = _manifest(folder / RUN_MANIFEST)
    model = manifest.get("model")
    model = model if isinstance(model, dict) else {}
    with open_csv(table) as opened:
        header = list(opened.header)
    labels = model.get("labels")
    labels = labels if isinstance(labels, list) and all(isinstance(label, str) for label in labels) else None
    # Every column after the leading ones is a label, as `predict` writes them.
    labels = labels or [name for name in header if name not in LEADING]
    predictions = read_predictions(table, {*MINERALS}, exactly=labels)
    thresholds = _thresholds(folder / RUN_MANIFEST, model.get("thresholds"), len(labels))
    captured, places = _captures(table, header, len(predictions.paths))
    return Results(
        table=table,
        predictions=predictions,
        thresholds=np.full(len(labels), ASSUMED_THRESHOLD) if thresholds is None else thresholds,
        knows_thresholds=thresholds is not None,
        captured=captured,
        places=places,
        familiarity=_familiarity(table, header, len(predictions.paths)),
        failures=_failures(folder / FAILURES),
        manifest=manifest,
        edited=tuple(edited_tables(folder)),
        damaged=_damaged(table, header),
    )


def _manifest(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"cannot read {path} ({plain_reason(error)}): rerun the command of the run to write it again"
        ) from None
    return content if isinstance(content, dict) else {}


def _thresholds(manifest: Path, values: Any, count: int) -> NDArray[np.float64] | None:
    if not isinstance(values, list) or len(values) != count:
        return None
    for value in values:
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise DataError(
                f"cannot read {manifest}: the threshold {str(value)[:40]!r} is not a number from 0 to 1: rerun the "
                "command of the run to write it again"
            )
    return np.array(values, np.float64)


def _captures(table: Path, header: list[str], count: int) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """When (N) and where (N, 2) images were taken, as far as the extra columns say."""
    if not {"captured", "latitude", "longitude"} & {*header}:
        return ("",) * count, np.full((count, 2), np.nan)
    captured, places = [], []
    with open_csv(table) as opened:
        for row in opened.dicts():
            captured.append(row.get("captured") or "")
            places.append([_degrees(row.get(name), limit) for name, limit in (("latitude", 90), ("longitude", 180))])
    return tuple(captured), np.array(places, np.float64).reshape(-1, 2)


def _familiarity(table: Path, header: list[str], count: int) -> NDArray[np.float64]:
    """Read the column `familiarity` (N,), NaN where there is none."""
    if "familiarity" not in header:
        return np.full(count, np.nan)
    with open_csv(table) as opened:
        return np.array([_number(row.get("familiarity"), 0, 1) for row in opened.dicts()], np.float64)


def _damaged(table: Path, header: list[str]) -> tuple[str, ...]:
    """Read the column `damaged`; nothing where there is none."""
    if DAMAGED_COLUMN not in header:
        return ()
    with open_csv(table) as opened:
        return tuple(row.get(DAMAGED_COLUMN) or "" for row in opened.dicts())


def _degrees(cell: str | None, limit: float) -> float:
    return _number(cell, -limit, limit)


def _number(cell: str | None, low: float, high: float) -> float:
    """A cell's number; NaN if it has none within the limits."""
    try:
        value = float(cell or "nan")
    except ValueError:
        return float("nan")
    return value if low <= value <= high else float("nan")


def _failures(table: Path) -> tuple[Failure, ...]:
    if not table.is_file():
        return ()
    with open_csv(table, FAILURE_COLUMNS) as opened:
        return tuple(Failure(row["path"], row["stage"], row["reason"]) for row in opened.dicts())
