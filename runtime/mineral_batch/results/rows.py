"""From results to the rows of tables: which minerals are present, and what is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, repeat
from typing import Any, Protocol

import numpy as np

from mineral_batch.minerals.levels import Levels
from mineral_batch.model.contract import ModelContract
from mineral_batch.model.familiarity import UNFAMILIAR
from mineral_batch.results.csv import formula_safe_text, shown
from mineral_batch.results.schema import SEPARATOR, format_number
from mineral_batch.types import ExifInfo, Failure, Prediction, Result
from mineral_batch.words import counted

_BLOCK = 1024


@dataclass(frozen=True)
class TableRow:
    """A prediction as the tables need it.

    Attributes:
        result: the prediction.
        values: L, its probabilities.
        minerals: the labels at or above their thresholds, most probable first.
        answer: the same with broader names where the labels are unsure (`mineral_batch.minerals.levels`); None without.
    """

    result: Prediction
    values: list[float]
    minerals: list[str]
    answer: tuple[str, ...] | None = None


@dataclass
class TableCounts:
    """What is in the tables of a run.

    Attributes:
        predicted: rows of predictions.csv.
        failures: rows of failures.csv, by stage.
        minerals: images that each mineral is present in.
        blank: rows in which no mineral is present.
        unfamiliar: rows of images that look like nothing that the model was trained on.
        familiar: rows whose familiarity is known.
        damaged: rows of damaged images, predicted from what could be decoded.
        further: files with more photos, which were not read.
        specimens: rows of specimens.csv.
        unnamed: images that the rule for specimens says nothing about: each is one of its own.
        unnamed_example: the path of one of them.
    """

    predicted: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    minerals: Counter[str] = field(default_factory=Counter)
    blank: int = 0
    unfamiliar: int = 0
    familiar: int = 0
    damaged: int = 0
    further: int = 0
    specimens: int = 0
    unnamed: int = 0
    unnamed_example: str = ""

    @property
    def failed(self) -> int:
        """Rows of failures.csv."""
        return self.failures.total()

    def record(self) -> dict[str, Any]:
        """Return the counts ready for JSON."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> TableCounts:
        """Read what `record` returned."""
        values: dict[str, Any] = {
            n: Counter(value) if isinstance(value, dict) else value for n, value in record.items()
        }
        return cls(**values)

    def further_line(self) -> str:
        """Return one line for the user about photos that were not read; empty if there is nothing to say."""
        if not self.further:
            return ""
        files = f"{counted(self.further, 'file')} {'has' if self.further == 1 else 'have'}"
        return f"Not read: {files} further pages or images; only the first of each was predicted"

    def specimens_line(self) -> str:
        """Return one line for the user about specimens; empty if none were asked for."""
        if not self.specimens:
            return ""
        line = counted(self.specimens, "specimen")
        if self.unnamed:
            images = f"{counted(self.unnamed)} {'has' if self.unnamed == 1 else 'have'}"
            line += f"; {images} no specimen by this rule, such as {shown(self.unnamed_example)}"
        return line

    def add(self, row: TableRow | Failure) -> None:
        """Count one row."""
        if isinstance(row, Failure):
            self.failures[row.stage] += 1
        else:
            self.predicted += 1
            self.minerals.update(row.minerals)
            self.blank += not row.minerals
            self.damaged += row.result.damage is not None
            self.further += row.result.further > 0
            if (familiarity := row.result.familiarity) is not None:
                self.familiar += 1
                self.unfamiliar += familiarity < UNFAMILIAR


class Sink(Protocol):
    """Takes the rows of a run one after the other."""

    def write(self, row: TableRow | Failure) -> None:
        """Take one row."""
        ...


def table_rows(
    results: Iterable[Result], contract: ModelContract, levels: Levels | None = None
) -> Iterator[TableRow | Failure]:
    """Yield the rows of results, made a block at a time, which is quicker than one by one.

    Args:
        results: in the order of the rows.
        contract: labels and thresholds.
        levels: give each row an answer up to a level.
    """
    remaining = iter(results)
    while block := list(islice(remaining, _BLOCK)):
        predictions = [result for result in block if isinstance(result, Prediction)]
        rows = _block(predictions, contract, levels) if predictions else iter(())
        yield from (next(rows) if isinstance(result, Prediction) else result for result in block)


def _block(predictions: Sequence[Prediction], contract: ModelContract, levels: Levels | None) -> Iterator[TableRow]:
    values = np.stack([prediction.probabilities for prediction in predictions]).astype(np.float64)
    present = values >= np.array(contract.thresholds)
    answers = repeat(None) if levels is None else levels.answers(values, present)
    rows, columns = np.nonzero(present)
    order = np.lexsort((-values[rows, columns], rows))  # stable: of equal probabilities the first label comes first
    names = [contract.labels[column] for column in columns[order].tolist()]
    ends = np.searchsorted(rows, np.arange(len(values) + 1)).tolist()
    for index, (prediction, row, answer) in enumerate(zip(predictions, values.tolist(), answers, strict=False)):
        yield TableRow(prediction, row, names[ends[index] : ends[index + 1]], answer)


def rounded(results: Iterable[Result], decimals: int) -> Iterator[Result]:
    """Yield the results with rounded probabilities; what is present follows the rounded ones, as a reader sees them."""
    for result in results:
        if isinstance(result, Prediction):
            yield replace(result, probabilities=result.probabilities.round(decimals))
        else:
            yield result


def extra_values(row: TableRow, names: Sequence[str], contract: ModelContract) -> list[Any]:
    """Return the values of extra columns, see `mineral_batch.results.schema.COLUMNS`."""
    if not names:
        return []
    result = row.result
    exif = result.exif or ExifInfo()
    values = {
        "width": result.width,
        "height": result.height,
        "captured": exif.time,
        "latitude": exif.latitude,
        "longitude": exif.longitude,
        "familiarity": None if result.familiarity is None else float(format_number(result.familiarity)),
        "answer": SEPARATOR.join(row.answer or ()),
        "damaged": formula_safe_text(result.damage or ""),
        **(best_columns(row.values, contract) if "best" in names else {}),
    }
    return [values[name] for name in names]


def _difference(first: float, second: float) -> float:
    """Of two probabilities as the table shows them: of rounded ones it has no more digits than they."""
    return float(format_number(float(format_number(first)) - float(format_number(second))))


def best_columns(values: Sequence[float], contract: ModelContract) -> dict[str, Any]:
    """The columns `best` of L probabilities; of equal ones the first label comes first."""
    first, *rest = sorted(range(len(values)), key=lambda index: -values[index])
    second = rest[0] if rest else None
    return {
        "best": contract.labels[first],
        "second": "" if second is None else contract.labels[second],
        "margin": _difference(values[first], 0.0 if second is None else values[second]),
        "calibrated": "yes" if contract.is_calibrated else "no",
    }
