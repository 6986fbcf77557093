"""A run in pieces on this machine: one shard of it, or all of it into an object store."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mineral_batch.cluster.changes import changes_since
from mineral_batch.cluster.crew import WAITS, Crew
from mineral_batch.cluster.identity import Identify
from mineral_batch.cluster.place import Folder, Place
from mineral_batch.cluster.plan import (
    ATTEMPTS,
    IMAGES,
    PARTS,
    PLAN,
    Plan,
    read_plan,
    write_pieces,
    write_plan,
)
from mineral_batch.cluster.shards import Shard
from mineral_batch.cluster.work import PieceReport, PieceWorker, check_fingerprint
from mineral_batch.errors import DataError
from mineral_batch.predictor import Predictor
from mineral_batch.results.fingerprint import DECODER
from mineral_batch.results.inputs import INPUTS_IN_MANIFEST, Inputs
from mineral_batch.results.journal import JOURNAL
from mineral_batch.results.manifest import timestamp
from mineral_batch.results.schema import PREDICTIONS, RUN_MANIFEST
from mineral_batch.results.write import CSV_ONLY, Tables
from mineral_batch.types import Result


@dataclass
class PiecesSummary:
    """What a worker did.

    Attributes:
        images: predicted or failed by this worker.
        failed: of them, without a prediction.
        pieces: that this worker finished.
        reused: images of pieces of this shard that had a part already, those that could not be read included.
        left: why pieces were left for another try: identifier -> reason.
        missing: pieces of the whole run that have no part yet.
        seconds: of the work.
        stopped: whether it was stopped.
        who: did it, in words; empty for this process.
    """

    images: int = 0
    failed: int = 0
    pieces: int = 0
    reused: int = 0
    left: dict[str, str] = field(default_factory=dict)
    missing: int = 0
    seconds: float = 0.0
    stopped: bool = False
    who: str = ""

    def add(self, report: PieceReport) -> None:
        """Count a piece."""
        if report.left:
            self.left[report.piece] = report.left
            return
        self.left.pop(report.piece, None)
        self.images += report.images
        self.failed += report.failed
        self.pieces += 1


def is_in_pieces(folder: Path) -> bool:
    """Return whether an output folder holds a run in pieces."""
    return (folder / PLAN).exists()


def refuse_pieces(folder: Path) -> None:
    """Check that a single run may write into a folder.

    Raises:
        DataError: if it holds a run in pieces.
    """
    if is_in_pieces(folder):
        raise DataError(
            f"{folder} holds a run in pieces: use --shard, write its tables with mineral-batch merge {folder}, or "
            f"choose another folder with -o"
        )


def refuse_single_run(place: Place) -> None:
    """Check that a run in pieces may write into a place.

    Raises:
        DataError: if it holds the results of a single run.
    """
    if isinstance(place, Folder) and (place.folder / JOURNAL).exists():
        raise DataError(f"{place.name} holds the results of a run without --shard: choose another folder with -o")
    is_ours = isinstance(place, Folder) and any((place.folder / name).exists() for name in (PLAN, RUN_MANIFEST))
    if isinstance(place, Folder) and (place.folder / PREDICTIONS).exists() and not is_ours:
        raise DataError(f"{place.name} holds a {PREDICTIONS} of something else: move it, or choose another with -o")


def discard(place: Place) -> None:
    """Remove a run in pieces; the plan last, so that a crash leaves one that can be discarded again."""
    for prefix in (ATTEMPTS, PARTS, IMAGES):
        for key in list(place.keys(prefix)):
            place.delete(key)
    place.delete(PLAN)


def make_plan(
    identify: Identify,
    place: Place,
    inputs: Inputs,
    tables: Tables = CSV_ONLY,
    *,
    piece_images: int | None = None,
    workers: int = 1,
    options: Mapping[str, Any] | None = None,
    mixed: bool = False,
    relist: bool = False,
) -> Plan:
    """Return the plan in a place; made if there is none.

    Args:
        identify: asks the open engine what it is.
        place: of the run.
        inputs: of the run.
        tables: what is wanted of the images, and what a merge writes.
        piece_images: images in a piece; None: see `write_pieces`.
        workers: how many share the run.
        options: of the command, for run.json.
        mixed: see `PieceWorker`.
        relist: compare an earlier plan with the images that are there now.

    Raises:
        DataError: if the place holds a plan of other inputs, another model or other options.
    """
    found = read_plan(place)
    if found is None:
        identity, sources = identify(inputs.sources())
        pieces = write_pieces(place, sources, identity.fingerprint, piece_images, workers=workers)
        mine = Plan(
            **vars(identity),
            inputs=inputs.first_named(INPUTS_IN_MANIFEST),
            inputs_named=inputs.count_named(),
            inputs_digest=inputs.digest(),
            tables=tables,
            started=timestamp(),
            pieces=pieces,
            options=options or {},
            not_read=inputs.skipped.record(),
            not_read_line=inputs.skipped.line(),
        )
        found = write_plan(place, mine)
        if found is mine:  # another's may be of the same pieces with other tables
            return found
    identity, _ = identify(iter(()), found.fingerprint.get(DECODER))
    check_fingerprint(found, identity.fingerprint, place, mixed=mixed)
    _check_wanted(found, place, inputs, tables)
    _check_size(found, place, piece_images)
    if relist:
        _check_images(found, place, inputs)
    return found


def _check_wanted(plan: Plan, place: Place, inputs: Inputs, tables: Tables) -> None:
    if plan.inputs_digest != inputs.digest():
        raise DataError(
            f"the run in {place.name} was planned for other inputs ({', '.join(plan.inputs[:3])}): name the same, in "
            f"the same order, or choose another output with -o"
        )
    refuse_unplanned_columns(plan, place, tables)


def _check_size(plan: Plan, place: Place, wanted: int | None) -> None:
    sizes = {piece.images for piece in plan.pieces[:-1]}  # the last one is what was left
    if wanted is not None and sizes and sizes != {wanted}:
        raise DataError(
            f"the run in {place.name} was planned with pieces of {max(sizes)} images: leave out --piece-images "
            f"{wanted}, or choose another output with -o"
        )


def refuse_unplanned_columns(plan: Plan, place: Place, tables: Tables) -> None:
    """Check that the parts of a run have the columns that are wanted of them.

    Raises:
        DataError: naming the column that they lack.
    """
    for column in ("captured", "gps", "familiarity"):
        if column in tables.columns and column not in plan.tables.columns:
            raise DataError(
                f"the run in {place.name} was planned without the column {column}: run predict with --columns {column} "
                f"into another output"
            )


def _check_images(plan: Plan, place: Place, inputs: Inputs) -> None:
    changes = changes_since(plan, place, inputs)
    if changes is not None:
        raise DataError(f"{changes.describe(place, plan)}: choose another output with -o, or start over with --restart")


def work(
    predictor: Predictor,
    place: Place,
    plan: Plan,
    shard: Shard,
    *,
    mixed: bool = False,
    seen: Callable[[Result | None], object] = lambda result: None,
    finished: Callable[[PieceReport], object] = lambda report: None,
    stop: Callable[[], bool] = lambda: False,
    waits: Sequence[float] = WAITS,
) -> PiecesSummary:
    """Do what a shard lacks; what another worker does meanwhile is not done twice, except for the piece in hand.

    Args:
        predictor: open.
        place: of the run.
        plan: of the run.
        shard: which pieces.
        mixed: see `PieceWorker`.
        seen: called with each new result, and with None for each image of a piece that is done.
        finished: called with what became of each piece.
        stop: called before each image; once it returns True the piece in hand is left.
        waits: seconds before each further try of the pieces that could not be read.
    """
    clock, summary = time.monotonic(), PiecesSummary()
    worker = PieceWorker(predictor, place, plan, mixed=mixed)
    pieces = shard.of(plan.pieces)
    without = {piece.id for piece in plan.to_do(place)}
    to_do = [piece for piece in pieces if piece.id in without]
    summary.reused = sum(piece.images for piece in pieces) - sum(piece.images for piece in to_do)
    for _ in range(summary.reused):
        seen(None)
    for wait in (0.0, *waits):
        if not to_do or stop():
            break
        time.sleep(wait)
        for piece in to_do:
            if stop():
                break
            report = worker.work(piece, seen, stop)
            summary.add(report)
            finished(report)
        to_do = [piece for piece in to_do if piece.id in summary.left]
    without = {piece.id for piece in plan.to_do(place)}
    summary.stopped = stop() and any(piece.id in without for piece in pieces)
    summary.missing = len(without)
    summary.seconds = time.monotonic() - clock
    return summary


def work_on_cluster(
    crew: Crew,
    place: Place,
    plan: Plan,
    *,
    finished: Callable[[PieceReport], object] = lambda report: None,
    stop: Callable[[], bool] = lambda: False,
) -> PiecesSummary:
    """Do all pieces that are missing.

    Args:
        crew: with an open worker.
        place: of the run.
        plan: of the run.
        finished: called with what became of each try of a piece.
        stop: whether the crew was stopped.
    """
    clock, summary = time.monotonic(), PiecesSummary()
    to_do = plan.to_do(place)
    summary.reused = plan.images - sum(piece.images for piece in to_do)

    def take(report: PieceReport) -> None:
        summary.add(report)
        finished(report)

    crew.work(place, to_do, take)
    summary.missing = len(plan.to_do(place))
    summary.stopped = stop() and summary.missing > 0
    summary.who = crew.describe()
    summary.seconds = time.monotonic() - clock
    return summary


def with_options(plan: Plan, tables: Tables) -> Tables:
    """Return the tables that a merge writes: those of the plan, and what the merge itself asks for."""
    return replace(
        plan.tables,
        formats=tuple(dict.fromkeys([*plan.tables.formats, *tables.formats])),
        per_image=plan.tables.per_image or tables.per_image,
        columns=tables.columns or plan.tables.columns,
        prevalence=tables.prevalence or plan.tables.prevalence,
        level=tables.level or plan.tables.level,
        specimen=tables.specimen or plan.tables.specimen,
        minerals=tables.minerals or plan.tables.minerals,
        decimals=plan.tables.decimals if tables.decimals is None else tables.decimals,
    )
