"""Forms of one model side by side: the same decoded pictures to each, each in a process of its own.

Their answers are compared as well: the speed of a form that answers something else means nothing.
"""

from __future__ import annotations

import itertools
import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.errors import DataError
from mineral_batch.results.fingerprint import file_digest
from mineral_bench import comparison
from mineral_bench.comparison import Comparison, compare
from mineral_bench.engine_alone import DECODED, LEAST_BATCHES, answer, fill
from mineral_bench.process.isolated import Isolated, IsolatedError
from mineral_bench.report import Table, names_apart, numbered
from mineral_export.verify.artefacts import Form, find_artefact, open_artefact, require_same
from mineral_export.verify.parity import budget_of, least_exact, photographs, synthetic

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Pixels, Probabilities
    from mineral_bench.measure import Plan


@dataclass(frozen=True)
class Entry(Form):
    """An open artefact as it is measured.

    Attributes:
        batch: pictures that its engine gets at once.
        workers: threads that ask it at the same time.
        size: of the file with its weights, bytes.
        sha256: of that file.
    """

    batch: int
    workers: int
    size: int
    sha256: str


class Engine:
    """An artefact's engine; made by `mineral_bench.process.isolated.Isolated`, and closed with its process.

    Args:
        name: `PATH[@ENGINE[:PRECISION]]`, see `mineral_export.verify.artefacts.open_artefact`.
        batch: pictures at once; None for what suits the engine.
    """

    def __init__(self, name: str, batch: int | None = None) -> None:
        self._stack = ExitStack()
        self._artefact = self._stack.enter_context(open_artefact(name, batch))
        self._backend = self._artefact.backend
        self._batch = batch or self._backend.batch_size

    def describe(self) -> Entry:
        """What is measured."""
        form, file = self._artefact, find_artefact(self._artefact.name).weights
        facts = self._batch, self._backend.workers, file.stat().st_size, file_digest(file)
        return Entry(form.name, form.engine, form.precision, form.contract, *facts)

    def prepare(self, pixels: Pixels, pictures: int) -> None:
        """Take (N, H, W, 3) uint8 pictures, and say how many a round has; both are multiples of the batch."""
        self._batches = fill(self._backend, pixels, self._batch)
        self._in_a_round = pictures // self._batch

    def answers(self) -> Probabilities:
        """To each picture once, (N, L) float32."""
        return answer(self._backend, self._batches)

    def round(self) -> None:
        """To as many as a round has, from the first again as often as needed."""
        answer(self._backend, itertools.islice(itertools.cycle(self._batches), self._in_a_round))

    def rest(self) -> None:
        """Do nothing: for whoever wants to know of the process."""


@dataclass(frozen=True)
class Load:
    """What every engine gets.

    Attributes:
        batch: pictures at once; None for what suits each engine.
        pictures: in a round, rounded up to whole batches of every engine; None for enough of them.
        photos: a folder or file; None for synthetic pictures.
    """

    batch: int | None = None
    pictures: int | None = None
    photos: Path | None = None


@dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        entries: label, unique -> artefact; in the order in which they were named.
        comparison: by the same labels.
        what: the pictures, in words.
    """

    entries: dict[str, Entry]
    comparison: Comparison
    what: str


def measure(names: Sequence[str], load: Load, plan: Plan) -> Measured:
    """Time all artefacts in interleaved rounds, after one answer to each picture that is compared.

    Args:
        names: `PATH[@ENGINE[:PRECISION]]`; the first is the reference, and one may come twice.
        load: pictures and batches.
        plan: how long.

    Raises:
        DataError: if a name is wrong, no photograph can be read, or a round is too short.
        ContractError: if a file is absent, or two are not forms of one model.
        IsolatedError: if one cannot be opened or does not answer.
    """
    for name in names:
        find_artefact(name)  # a wrong one is said before the others are opened, which may take minutes
    with ExitStack() as stack:
        engines = dict(zip(labels(names), (_open(name, load.batch, stack) for name in names), strict=True))
        entries = _described(engines)
        pictures = in_a_round(list(entries.values()), load.pictures)
        pixels, what = _pictures(entries, load.photos, pictures)
        first = {label: _first(engines[label], entry, pixels, pictures) for label, entry in entries.items()}
        return Measured(entries, compare(engines, first, "round", pictures, plan), what)


def labels(names: Sequence[str]) -> list[str]:
    """What to call them in a table: see `names_apart`, with their engines, and different from each other."""
    places = [find_artefact(name).path for name in names]
    called = zip(names, places, names_apart(places), strict=True)
    return numbered([short + _engine_in(name, place) for name, place, short in called])


def _engine_in(name: str, place: Path) -> str:
    """`@ENGINE[:PRECISION]` as it was named, nothing where it was not."""
    return "" if Path(name) == place else f"@{name.rpartition('@')[2]}"


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say of which artefact an error is."""
    try:
        yield
    except IsolatedError as error:
        raise IsolatedError(f"{name}: {error}") from None


def _open(name: str, batch: int | None, stack: ExitStack) -> Isolated:
    with _named(name):
        return stack.enter_context(Isolated(partial(Engine, name, batch)))


def _described(engines: dict[str, Isolated]) -> dict[str, Entry]:
    """What each is; all must be forms of the first one's model."""
    entries: dict[str, Entry] = {label: engine.call("describe").value for label, engine in engines.items()}
    reference, *others = entries.values()
    for other in others:
        require_same(reference, other)
    return entries


def in_a_round(entries: Sequence[Entry], asked: int | None) -> int:
    """Pictures in a round: whole batches for every engine, at least one for each of its threads.

    Raises:
        DataError: if fewer are asked for.
    """
    largest = max(entries, key=lambda entry: entry.batch * entry.workers)
    least = largest.batch * largest.workers
    if asked is not None and asked < least:
        smaller = ", or a smaller --batch" if largest.batch > 1 else ""
        raise DataError(
            f"{largest.name} takes batches of {largest.batch}, {largest.workers} at once: --pictures {asked} do not "
            f"fill them; give {least} or more{smaller}"
        )
    whole = math.lcm(*(entry.batch for entry in entries))
    return _up(asked or LEAST_BATCHES * least, whole)


def _up(count: int, whole: int) -> int:
    """To the next multiple."""
    return -(-count // whole) * whole


def _pictures(entries: dict[str, Entry], photos: Path | None, pictures: int) -> tuple[Pixels, str]:
    """(N, H, W, 3) uint8 in whole batches of every engine, and what they are in words."""
    first, *_ = entries.values()
    count = min(pictures, _up(DECODED, math.lcm(*(entry.batch for entry in entries.values()))))
    found, what = _drawn(first.contract.input, photos, count)
    # From the first again where there are fewer photographs.
    return np.resize(found, (count, *found.shape[1:])), f"{len(found)} different {what}"


def _drawn(spec: InputSpec, photos: Path | None, count: int) -> tuple[Pixels, str]:
    if photos is None:
        return synthetic(spec, count), "synthetic pictures"
    return photographs([photos], spec, count), "photographs"


def _first(engine: Isolated, entry: Entry, pixels: Pixels, pictures: int) -> Probabilities:
    """(N, L) answers to the pictures, which the engine keeps."""
    with _named(entry.name):
        engine.call("prepare", pixels, pictures)
        return np.asarray(engine.call("answers").value)


def table(found: Measured) -> Table:
    """One row per artefact in the order in which they were named, each against the first."""
    entries = found.entries
    reference, *_ = entries.values()
    plain = comparison.table(found.comparison, f"{reference.contract.name}: engines alone, pictures decoded before")
    rows = [
        (label, _in_words(entries[str(label)]), *values, f"{entries[str(label)].size / 1e6:.1f}")
        for label, *values in plain.rows
    ]
    columns = ["artefact", "engine", *plain.columns[1:], "file, MB"]
    return Table(plain.title, columns, rows, [*plain.notes, f"{found.what}.", *doubts(found)])


def _in_words(entry: Entry) -> str:
    return f"{entry.engine}; batches of {entry.batch}, {entry.workers} at once"


def doubts(found: Measured) -> list[str]:
    """Artefacts whose answers lie farther from the first's than `mineral-export verify` allows their precision."""
    reference, *_ = found.entries.values()
    said = []
    for label, entry in found.entries.items():
        budget = budget_of(least_exact((reference.precision, entry.precision)))
        if not found.comparison.differences[label] <= budget.largest:  # also where it is not a number
            said.append(
                f"{label} answers otherwise than the first: beyond the largest difference of {budget.largest:g} that "
                f"mineral-export verify allows {budget.name}."
            )
    return said


def files(found: Measured) -> str:
    """Which they are, in words, for the conditions."""
    return "; ".join(f"{label}, SHA-256 {entry.sha256[:16]}" for label, entry in found.entries.items())


def figures(found: Measured) -> dict[str, Any]:
    """For JSON."""
    keys = ("engine", "precision", "batch", "workers", "size", "sha256")
    facts = [{"artefact": label} | {key: getattr(one, key) for key in keys} for label, one in found.entries.items()]
    return {"artefacts": facts, **comparison.figures(found.comparison), "doubts": doubts(found)}
