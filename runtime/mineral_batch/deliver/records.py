"""The answers of a run, one per image: what a person decided, else what the model says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mineral_batch.deliver.inventory import Joined
from mineral_batch.minerals.levels import Levels, union_probability
from mineral_batch.minerals.table import Level, Table, load_table
from mineral_batch.report.thumbnails import find_base
from mineral_batch.results.predictions import Bools
from mineral_batch.results.read import Results, read_results
from mineral_batch.review.decisions import Decision, read_decisions

Evidence = Literal["machine", "human", "unsure"]


@dataclass(frozen=True)
class Record:
    """The answer for one image, or for a specimen from its images.

    Attributes:
        path: as the run's tables name it; of a record of several images, the name of the specimen.
        minerals: what it shows, most probable first; with a level, also broader names where no mineral is sure.
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
        images: their paths; one, or those of the specimen.
        group: the specimen by the rule that joined the images; empty without one.
        broader: probabilities of those of `minerals` that are broader names, by the model.
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
    images: tuple[str, ...] = ()
    group: str = ""
    broader: Mapping[str, float] = field(default_factory=dict)

    def probability(self, name: str) -> float | None:
        """By the model, of a label or of a broader name in the answer; None of what people added."""
        return self.probabilities.get(name, self.broader.get(name))

    @property
    def specimen(self) -> str:
        """The inventory number, else what the rule of specimens names it, else the image itself."""
        return self.number or self.group or self.path

    @property
    def best(self) -> str:
        """The most probable label."""
        return max(self.probabilities, key=lambda label: self.probabilities[label])


class DeliveryCounts(NamedTuple):
    """What a delivery has to say, in figures.

    Attributes:
        answered: records that name a mineral.
        decided: records that a person decided.
        unsure: records that a person could not decide.
        failed: images that could not be read, of which there is no record.
    """

    answered: int
    decided: int
    unsure: int
    failed: int


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
        images: specimen -> its images, where the records are those of specimens (`specimens.by_specimen`).
        captured: image -> when it was taken, where the records are those of specimens.
        level: the broadest level at which the model's answers may be; None for its labels only.
        table: of minerals.
        on_record: called after each record that was read.
        id_prefix: how identifiers of specimens begin in Darwin Core; None for UUIDs.
    """

    results: Results
    decisions: Mapping[str, Decision]
    base: Path
    least: float | None = None
    own_names: Mapping[str, str] = field(default_factory=dict)
    joined: Joined | None = None
    images: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    captured: Mapping[str, str] = field(default_factory=dict)
    level: Level | None = None
    table: Table = field(default_factory=load_table)
    on_record: Callable[[], object] = lambda: None
    id_prefix: str | None = None

    @property
    def has_specimens(self) -> bool:
        """Whether the records are those of specimens, not of images."""
        return bool(self.images)

    @property
    def what(self) -> str:
        """What the records are of, for people."""
        return "specimens" if self.has_specimens else "images"

    @property
    def first_images(self) -> list[str]:
        """The (first) image of each record."""
        return [self.images[path][0] if self.has_specimens else path for path in self.results.predictions.paths]

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
        called, answers = self._answers()
        for row, path in enumerate(self.results.predictions.paths):
            yield self._record(row, path, called[row], answers[row] if answers else None)
            self.on_record()

    def count(self) -> DeliveryCounts:
        """Count the records that name a mineral and those that people decided, as `__iter__` yields them."""
        called, answers = self._answers()
        named: Bools = (
            np.atleast_1d(called.any(axis=1))
            if answers is None
            else np.array([bool(answer) for answer in answers], np.bool_)
        )
        decided = unsure = 0
        for row, path in enumerate(self.results.predictions.paths):
            if (decision := self.decisions.get(path)) is None:
                continue
            machine = tuple(compress(self.labels, called[row]))
            named[row] = bool(_decided(decision, machine, answers[row] if answers else None)[0])
            decided += decision.status != "unsure"
            unsure += decision.status == "unsure"
        return DeliveryCounts(int(named.sum()), decided, unsure, len(self.results.failures))

    def _answers(self) -> tuple[Bools, list[tuple[str, ...]] | None]:
        """What the model calls present (N, L), and with a level its answer to each image."""
        table = self.results.predictions
        called = table.called if self.least is None else table.scores >= self.least
        return called, self._levels.answers(table.scores, called) if self._levels else None

    @cached_property
    def _levels(self) -> Levels | None:
        return None if self.level is None else Levels(self.labels, self.level, self.table)

    def _broader(self, row: int, names: Sequence[str]) -> dict[str, float]:
        """The probabilities of those of the names that are unions of labels."""
        unions = [union for name in names if self._levels and (union := self._levels.union(name))]
        scores = self.results.predictions.scores[row]
        return {one.name: float(union_probability(scores[np.newaxis, list(one.columns)])[0]) for one in unions}

    def photographs(self) -> Iterator[Record]:
        """The same for each image: those of a specimen have its answer."""
        for record in self:
            for image in record.images:
                yield replace(record, path=image, captured=self.taken(record, image), images=(image,))

    def taken(self, record: Record, image: str) -> str:
        """When an image of a record was taken; empty where that is not known."""
        return self.captured.get(image, "") if self.has_specimens else record.captured

    def _record(self, row: int, path: str, called: Any, answer: tuple[str, ...] | None) -> Record:
        table = self.results.predictions
        probabilities = dict(zip(table.labels, table.scores[row].tolist(), strict=True))
        machine = tuple(sorted(compress(table.labels, called), key=lambda label: -probabilities[label]))
        decision = self.decisions.get(path)
        minerals, evidence = _decided(decision, machine, answer)
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
            self.images.get(path, (path,)),
            path if self.has_specimens else "",
            self._broader(row, minerals),
        )

    def file(self, record: Record) -> Path:
        """Where the (first) image should lie; a member of an archive lies in no file."""
        return self.base / record.images[0]


def printable(path: str) -> str:
    """A path in which bytes that are not UTF-8 are written as escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _decided(
    decision: Decision | None, machine: tuple[str, ...], answer: tuple[str, ...] | None
) -> tuple[tuple[str, ...], Evidence]:
    if decision is None:
        return machine if answer is None else answer, "machine"
    if decision.status == "labeled":
        return decision.minerals, "human"
    if decision.status == "unsure":
        return (), "unsure"
    return tuple(name for name in machine if name not in decision.minerals), "machine"  # some were rejected


def read_delivery(
    folder: Path,
    photos: Path | None = None,
    least: float | None = None,
    level: Level | None = None,
    minerals: Path | None = None,
) -> Delivery:
    """Read the tables of a run and the decisions about it.

    Args:
        folder: output of `predict`.
        photos: where relative paths start; None looks here and near the folder.
        least: see `Delivery`.
        level: see `Delivery`.
        minerals: a table of minerals in place of the package's.

    Raises:
        DataError: if there are no tables, a review of them is open, or the table of minerals cannot be read.
    """
    table = load_table(minerals)
    results = read_results(folder)
    decisions = {decision.path: decision for decision in read_decisions(folder)}
    base = photos or find_base(results.predictions.paths, [Path(), folder, folder.parent])
    return Delivery(results, decisions, base, least, level=level, table=table)
