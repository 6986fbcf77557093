"""Reports: tables in Markdown for people, every figure in JSON for the next run to compare with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from mineral_batch.errors import DataError, plain_reason
from mineral_batch.files import write_file
from mineral_batch.results.seals import sealed_json, sealed_markdown
from mineral_bench.conditions import in_words
from mineral_bench.measure import Estimate, three_digits

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
        title: what they show.
        columns: their names.
        rows: each as long as the columns; numbers are shown with three digits.
        notes: lines under the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """Return a heading, the table and its notes."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        table = "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)
        return "\n\n".join([f"### {self.title}", table, *self.notes])


def names_apart(paths: Sequence[Path]) -> list[str]:
    """Return short unique names for files or folders: their own, with as few parent folders as tell them apart.

    The same place always gets the same name.
    """
    places = [path.absolute() for path in paths]
    return [_shortest(place, [other for other in places if other != place]) for place in places]


def _shortest(place: Path, others: Sequence[Path]) -> str:
    tails = (place.parts[-length:] for length in range(1, len(place.parts) + 1))
    return str(Path(*next(tail for tail in tails if all(other.parts[-len(tail) :] != tail for other in others))))


def numbered(names: Sequence[str]) -> list[str]:
    """Return the names, with ` (2)` after the second of two equal ones."""
    seen = [names[:index].count(name) for index, name in enumerate(names)]
    return [f"{name} ({times + 1})" if times else name for name, times in zip(names, seen, strict=True)]


@dataclass(frozen=True)
class BenchmarkReport:
    """One run of a benchmark.

    Attributes:
        benchmark: its command's name.
        conditions: see `mineral_bench.conditions.conditions`.
        figures: everything measured, ready for JSON except `Estimate` and arrays, which are converted.
        tables: for people.
    """

    benchmark: str
    conditions: dict[str, Any]
    figures: dict[str, Any]
    tables: Sequence[Table] = field(default_factory=tuple)

    def json(self) -> str:
        """Return everything except the tables, which repeat the figures."""
        record = {
            "schema": SCHEMA_VERSION,
            "benchmark": self.benchmark,
            "conditions": self.conditions,
            "figures": self.figures,
        }
        return sealed_json(json.dumps(record, indent=1, default=_plain, ensure_ascii=False))

    def markdown(self) -> str:
        """Return the tables, then the conditions."""
        foot = "\n".join(f"- {line}" for line in in_words(self.conditions))
        return "\n\n".join([*(table.markdown() for table in self.tables), foot]) + "\n"

    def _sealed_markdown(self) -> str:
        return sealed_markdown(self.markdown())

    def write(self, json_file: Path | None, markdown_file: Path | None) -> None:
        """Print the tables, and write the files that are named.

        Raises:
            DataError: if one cannot be written.
        """
        click.echo(self.markdown())
        for path, text in ((json_file, self.json), (markdown_file, self._sealed_markdown)):
            if path:
                write_file(path, text())
                click.echo(f"Wrote {path}")


def load_figures(path: Path, benchmark: str) -> dict[str, Any]:
    """Read a report that was saved as JSON: the keys `conditions` and `figures`.

    Raises:
        DataError: if it is not a report, or another benchmark's.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {plain_reason(error)}; use a file that --json wrote") from None
    if not isinstance(record, dict) or record.get("benchmark") != benchmark or record.get("schema") != SCHEMA_VERSION:
        raise DataError(f"{path} was not written by `mineral-bench {benchmark} --json` of this version")
    return record


def _cell(value: object) -> str:
    if isinstance(value, float):
        return three_digits(value)
    return "" if value is None else str(value).replace("|", "\\|")


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return {"value": value.value, "low": value.low, "high": value.high}
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value)} cannot be written as JSON")
