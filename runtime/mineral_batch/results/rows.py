"""From results to the rows of tables: which minerals are present, and what is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np

from mineral_batch.model.contract import ModelContract
from mineral_batch.types import ExifInfo, Failure, Prediction, Result

_BLOCK = 1024


@dataclass(frozen=True)
class TableRow:
    """A prediction as the tables need it.

    Attributes:
        result: the prediction.
        values: L, its probabilities.
        minerals: the labels at or above their thresholds, most probable first.
    """

    result: Prediction
    values: list[float]
    minerals: list[str]


@dataclass
class TableCounts:
    """What is in the tables of a run.

    Attributes:
        predicted: rows of predictions.csv.
        failures: rows of failures.csv, by stage.
        minerals: images that each mineral is present in.
    """

    predicted: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    minerals: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        """Rows of failures.csv."""
        return self.failures.total()

    def add(self, row: TableRow | Failure) -> None:
        """Count one row."""
        if isinstance(row, Failure):
            self.failures[row.stage] += 1
        else:
            self.predicted += 1
            self.minerals.update(row.minerals)


class Sink(Protocol):
    """Takes the rows of a run one after the other."""

    def write(self, row: TableRow | Failure) -> None:
        """Take one row."""
        ...


def table_rows(results: Iterable[Result], contract: ModelContract) -> Iterator[TableRow | Failure]:
    """Yield the rows of results, made a block at a time, which is quicker than one by one."""
    remaining = iter(results)
    while block := list(islice(remaining, _BLOCK)):
        predictions = [result for result in block if isinstance(result, Prediction)]
        rows = _block(predictions, contract) if predictions else iter(())
        yield from (next(rows) if isinstance(result, Prediction) else result for result in block)


def _block(predictions: Sequence[Prediction], contract: ModelContract) -> Iterator[TableRow]:
    values = np.stack([prediction.probabilities for prediction in predictions]).astype(np.float64)
    present = values >= np.array(contract.thresholds)
    for prediction, row, mask in zip(predictions, values.tolist(), present, strict=True):
        indices = sorted(np.flatnonzero(mask).tolist(), key=lambda index, row=row: -row[index])  # type: ignore[misc]
        yield TableRow(prediction, row, [contract.labels[index] for index in indices])


def extra_values(result: Prediction, names: Sequence[str]) -> list[Any]:
    """Return the values of extra columns, see `mineral_batch.results.schema.COLUMNS`."""
    if not names:
        return []
    exif = result.exif or ExifInfo()
    values = {
        "width": result.width,
        "height": result.height,
        "captured": exif.time,
        "latitude": exif.latitude,
        "longitude": exif.longitude,
    }
    return [values[name] for name in names]
