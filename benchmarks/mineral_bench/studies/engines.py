"""Forms of one model side by side on the same decoded images, each in a process of its own.

Their output is compared as well: the speed of a form that computes something else means nothing.
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
from mineral_bench.engine_only import DECODED, LEAST_BATCHES, fill, infer_all
from mineral_bench.process.isolated import Isolated, IsolatedError
from mineral_bench.report import Table, names_apart, numbered
from mineral_export.verify.artifacts import ArtifactInfo, open_artifact, parse_artifact, require_same
from mineral_export.verify.budget import budget_for, least_exact
from mineral_export.verify.samples import first_images, synthetic_images

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Pixels, Probabilities
    from mineral_bench.measure import Plan


@dataclass(frozen=True)
class Entry(ArtifactInfo):
    """An open artifact as it is measured.

    Attributes:
        batch: images in a call.
        workers: threads that call the engine at the same time.
        size: of the file with the weights, bytes.
        sha256: of that file.
    """

    batch: int
    workers: int
    size: int
    sha256: str


class EngineProcess:
    """An artifact's engine, made by `mineral_bench.process.isolated.Isolated` and closed with its process.

    Args:
        name: `PATH[@ENGINE[:PRECISION]]`, see `mineral_export.verify.artifacts.open_artifact`.
        batch: images in a call; None for what suits the engine.
    """

    def __init__(self, name: str, batch: int | None = None) -> None:
        self._stack = ExitStack()
        self._artifact = self._stack.enter_context(open_artifact(name, batch))
        self._backend = self._artifact.backend
        self._batch = batch or self._backend.batch_size

    def describe(self) -> Entry:
        """Describe what is measured."""
        form, file = self._artifact, parse_artifact(self._artifact.name).weights
        facts = self._batch, self._backend.workers, file.stat().st_size, file_digest(file)
        return Entry(form.name, form.engine, form.precision, form.contract, *facts)

    def prepare(self, pixels: Pixels, images: int) -> None:
        """Take (N, H, W, 3) uint8 images, and the number of images in a round; both are multiples of the batch."""
        self._batches = fill(self._backend, pixels, self._batch)
        self._in_a_round = images // self._batch

    def predict(self) -> Probabilities:
        """Predict each image once: (N, L) float32."""
        return infer_all(self._backend, self._batches)

    def round(self) -> None:
        """Predict the images of one round, repeating them as often as needed."""
        infer_all(self._backend, itertools.islice(itertools.cycle(self._batches), self._in_a_round))

    def rest(self) -> None:
        """Do nothing; the reply tells about the process."""


@dataclass(frozen=True)
class Load:
    """What every engine predicts.

    Attributes:
        batch: images in a call; None for what suits each engine.
        images: in a round, rounded up to whole batches of every engine; None for enough.
        photos: a folder or file; None for synthetic images.
    """

    batch: int | None = None
    images: int | None = None
    photos: Path | None = None


@dataclass(frozen=True)
class EngineComparison:
    """The result.

    Attributes:
        entries: unique label -> artifact, in the order in which they were named.
        comparison: by the same labels.
        what: the images in words.
    """

    entries: dict[str, Entry]
    comparison: Comparison
    what: str


def measure(names: Sequence[str], load: Load, plan: Plan) -> EngineComparison:
    """Time all artifacts in interleaved rounds; before that each predicts every image once, for comparison.

    Args:
        names: `PATH[@ENGINE[:PRECISION]]`; the first is the reference, and one may come twice.
        load: images and batches.
        plan: how long.

    Raises:
        DataError: if a name is wrong, no image can be read, or a round is too short.
        ContractError: if a file is absent, or two are not forms of one model.
        IsolatedError: if one cannot be opened or fails.
    """
    for name in names:
        parse_artifact(name)  # refused before the others are opened, which may take minutes
    with ExitStack() as stack:
        engines = dict(zip(labels(names), (_open(name, load.batch, stack) for name in names), strict=True))
        entries = _described(engines)
        images = images_in_round(list(entries.values()), load.images)
        pixels, what = _load_images(entries, load.photos, images)
        first = {label: _predict(engines[label], entry, pixels, images) for label, entry in entries.items()}
        return EngineComparison(entries, compare(engines, first, "round", images, plan), what)


def labels(names: Sequence[str]) -> list[str]:
    """Return unique labels for a table: see `names_apart`, with their engines."""
    places = [parse_artifact(name).path for name in names]
    called = zip(names, places, names_apart(places), strict=True)
    return numbered([short + _engine_in(name, place) for name, place, short in called])


def _engine_in(name: str, place: Path) -> str:
    """Return `@ENGINE[:PRECISION]` if it was named."""
    return "" if Path(name) == place else f"@{name.rpartition('@')[2]}"


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say which artifact an error is about."""
    try:
        yield
    except IsolatedError as error:
        raise IsolatedError(f"{name}: {error}") from None


def _open(name: str, batch: int | None, stack: ExitStack) -> Isolated:
    with _named(name):
        return stack.enter_context(Isolated(partial(EngineProcess, name, batch)))


def _described(engines: dict[str, Isolated]) -> dict[str, Entry]:
    """Describe each; all must be forms of the first one's model."""
    entries: dict[str, Entry] = {label: engine.call("describe").value for label, engine in engines.items()}
    reference, *others = entries.values()
    for other in others:
        require_same(reference, other)
    return entries


def images_in_round(entries: Sequence[Entry], requested: int | None) -> int:
    """Return the number of images in a round: whole batches for every engine, at least one for each of its threads.

    Raises:
        DataError: if fewer are requested.
    """
    largest = max(entries, key=lambda entry: entry.batch * entry.workers)
    least = largest.batch * largest.workers
    if requested is not None and requested < least:
        smaller = ", or a smaller --batch" if largest.batch > 1 else ""
        raise DataError(
            f"{largest.name} takes batches of {largest.batch}, {largest.workers} at once: --images {requested} do "
            f"not fill them; use {least} or more{smaller}"
        )
    whole = math.lcm(*(entry.batch for entry in entries))
    return _round_up(requested or LEAST_BATCHES * least, whole)


def _round_up(count: int, whole: int) -> int:
    return -(-count // whole) * whole


def _load_images(entries: dict[str, Entry], photos: Path | None, images: int) -> tuple[Pixels, str]:
    """Return (N, H, W, 3) uint8 in whole batches of every engine, and what they are in words."""
    first, *_ = entries.values()
    count = min(images, _round_up(DECODED, math.lcm(*(entry.batch for entry in entries.values()))))
    pixels, what = _draw(first.contract.input, photos, count)
    # Repeated if there are fewer photographs.
    return np.resize(pixels, (count, *pixels.shape[1:])), f"{len(pixels)} different {what}"


def _draw(spec: InputSpec, photos: Path | None, count: int) -> tuple[Pixels, str]:
    if photos is None:
        return synthetic_images(spec, count), "synthetic images"
    return first_images([photos], spec, count), "photographs"


def _predict(engine: Isolated, entry: Entry, pixels: Pixels, images: int) -> Probabilities:
    """Return (N, L) predictions for the images, which the engine keeps."""
    with _named(entry.name):
        engine.call("prepare", pixels, images)
        return np.asarray(engine.call("predict").value)


def table(result: EngineComparison) -> Table:
    """Return one row per artifact in the order in which they were named, each compared with the first."""
    entries = result.entries
    reference, *_ = entries.values()
    plain = comparison.table(result.comparison, f"{reference.contract.name}: engines alone, on decoded images")
    rows = [
        (label, _in_words(entries[str(label)]), *values, f"{entries[str(label)].size / 1e6:.1f}")
        for label, *values in plain.rows
    ]
    columns = ["artifact", "engine", *plain.columns[1:], "file, MB"]
    return Table(plain.title, columns, rows, [*plain.notes, f"{result.what}.", *doubts(result)])


def _in_words(entry: Entry) -> str:
    return f"{entry.engine}; batches of {entry.batch}, {entry.workers} at once"


def doubts(result: EngineComparison) -> list[str]:
    """Name artifacts whose output lies farther from the first's than `mineral-export verify` allows their precision."""
    reference, *_ = result.entries.values()
    notes = []
    for label, entry in result.entries.items():
        budget = budget_for(least_exact((reference.precision, entry.precision)))
        if not result.comparison.differences[label] <= budget.largest:  # also where it is not a number
            notes.append(
                f"The output of {label} differs from the first's by more than the {budget.largest:g} that "
                f"mineral-export verify allows {budget.name}."
            )
    return notes


def files(result: EngineComparison) -> str:
    """Return the files in words, for the conditions."""
    return "; ".join(f"{label}, SHA-256 {entry.sha256[:16]}" for label, entry in result.entries.items())


def figures(result: EngineComparison) -> dict[str, Any]:
    """Return the figures for JSON."""
    keys = ("engine", "precision", "batch", "workers", "size", "sha256")
    facts = [{"artifact": label} | {key: getattr(one, key) for key in keys} for label, one in result.entries.items()]
    return {"artifacts": facts, **comparison.figures(result.comparison), "doubts": doubts(result)}
