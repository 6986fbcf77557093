"""The answers of a run, one per image: what a person decided, else what the model says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mineral_batch.deliver.inventory import Joined
from mineral_batch.report.thumbnails import find_base
from mineral_batch.results.read import Results, read_results
from mineral_batch.review.decisions import Decision, read_decisions

Evidence = Literal["machine", "human", "unsure"]


@dataclass(frozen=True)
class Record:
    """The answer for one image.

    Attributes:
        path: as the run's tables name it.
        minerals: what it shows, most probable first.
        evidence: `human` if a person decided it; `unsure` if a person could not; else `machine`.
        machine: what the model called present, whatever a person said of it.
        probabilities: of the model for every label.
        reviewer: who decided; empty for the model.
        time: when, ISO 8601; empty for the model.
        captured: when the image was taken; empty where that is not known.
        place: latitude and longitude in degrees, None where they are not known.
        names: of `minerals`, as the collection names them.
        number: in the collection's inventory; empty where it is not known.
        inventory: the cells of the inventory's row, empty without one.
    """

    path: str
    minerals: tuple[str, ...]
    evidence: Evidence
    machine: tuple[str, ...]
    probabilities: Mapping[str, float]
    reviewer: str = ""
    time: str = ""
    captured: str = ""
    place: tuple[float, float] | None = None
    names: tuple[str, ...] = ()
    number: str = ""
    inventory: tuple[str, ...] = ()

    @property
    def specimen(self) -> str:
        """The inventory number, else the image itself."""
        return self.number or self.path

    @property
    def best(self) -> str:
        """The most probable label."""
        return max(self.probabilities, key=lambda label: self.probabilities[label])


@dataclass(frozen=True)
class Delivery:
    """A run, ready to be delivered.

    Attributes:
        results: its tables.
        decisions: path -> what a person decided.
        base: where relative paths start.
        least: probability from which the model's answers count; None for the thresholds of the model.
        own_names: label -> how the collection names it.
        joined: its inventory, joined to the images.
    """

    results: Results
    decisions: Mapping[str, Decision]
    base: Path
    least: float | None = None
    own_names: Mapping[str, str] = field(default_factory=dict)
    joined: Joined | None = None

    @property
    def inventory_columns(self) -> tuple[str, ...]:
        """Of the inventory; none without one."""
        return self.joined.inventory.header if self.joined else ()

    def name(self, label: str) -> str:
        """How the collection names a label."""
        return self.own_names.get(label, label)

    @property
    def model(self) -> str:
        """Name of the model and the first digits of its hash."""
        model: Mapping[str, Any] = self.results.manifest.get("model") or {}
        digest = str(model.get("sha256", ""))[:12]
        return f"{model.get('name', 'unknown model')}{f' ({digest})' if digest else ''}"

    @property
    def labels(self) -> Sequence[str]:
        """Of the model."""
        return self.results.predictions.labels

    def __len__(self) -> int:
        return len(self.results.predictions.paths)

    def __iter__(self) -> Iterator[Record]:
        """The records in the order of the table."""
        table = self.results.predictions
        called = table.called if self.least is None else table.scores >= self.least
        for row, path in enumerate(table.paths):
            yield self._record(row, path, called[row])

    def _record(self, row: int, path: str, called: Any) -> Record:
        table = self.results.predictions
        probabilities = dict(zip(table.labels, table.scores[row].tolist(), strict=True))
        machine = tuple(sorted(compress(table.labels, called), key=lambda label: -probabilities[label]))
        decision = self.decisions.get(path)
        minerals, evidence = _decided(decision, machine)
        latitude, longitude = self.results.places[row].tolist()
        return Record(
            path,
            minerals,
            evidence,
            machine,
            probabilities,
            decision.reviewer if decision else "",
            decision.time if decision else "",
            self.results.captured[row],
            (latitude, longitude) if np.isfinite([latitude, longitude]).all() else None,
            tuple(map(self.name, minerals)),
            self.joined.number(path) if self.joined else "",
            self.joined.row(path) if self.joined else (),
        )

    def file(self, record: Record) -> Path:
        """Where the image should lie; a member of an archive lies in no file."""
        return self.base / record.path


def printable(path: str) -> str:
    """A path in which bytes that are not UTF-8 are written as escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _decided(decision: Decision | None, machine: tuple[str, ...]) -> tuple[tuple[str, ...], Evidence]:
    if decision is None:
        return machine, "machine"
    if decision.status == "labelled":
        return decision.minerals, "human"
    if decision.status == "unsure":
        return (), "unsure"
    return tuple(name for name in machine if name not in decision.minerals), "machine"  # some were rejected


def read_delivery(folder: Path, photos: Path | None = None, least: float | None = None) -> Delivery:
    """Read the tables of a run and the decisions about it.

    Args:
        folder: output of `predict`.
        photos: where relative paths start; None looks here and near the folder.
        least: see `Delivery`.

    Raises:
        DataError: if there are no tables, or a review of them is open.
    """
    results = read_results(folder)
    decisions = {decision.path: decision for decision in read_decisions(folder)}
    base = photos or find_base(results.predictions.paths, [Path(), folder, folder.parent])
    return Delivery(results, decisions, base, least)
