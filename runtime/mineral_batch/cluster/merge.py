"""`mineral-batch merge`: from the parts of a run to the tables of a single machine, byte for byte."""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mineral_batch.cluster.parts import Part, decode_part
from mineral_batch.cluster.place import Folder, Place
from mineral_batch.cluster.plan import PLAN, Piece, Plan, read_plan
from mineral_batch.cluster.run import refuse_single_run, refuse_unplanned_columns, with_options
from mineral_batch.cluster.work import MAY_DIFFER
from mineral_batch.errors import DataError
from mineral_batch.results.corrections import adjusted, check_prevalence, prevalence_shift
from mineral_batch.results.csv import listed
from mineral_batch.results.fingerprint import describe_difference
from mineral_batch.results.manifest import RunManifest, describe_software, parse_manifest, timestamp, write_manifest
from mineral_batch.results.prevalence import PrevalenceShift
from mineral_batch.results.rows import TableCounts
from mineral_batch.results.schema import FAILURES, PER_IMAGE, RUN_MANIFEST, SCHEMA_VERSION, SPECIMENS
from mineral_batch.results.write import CSV_ONLY, Tables, require, write_tables
from mineral_batch.results.written import note_written, refuse_edited_tables, refuse_foreign_tables
from mineral_batch.types import Result
from mineral_batch.words import counted

_NAMED = 5
# While a merge writes; without run.json nobody knows whose the tables are that it was killed over.
_BEGUN = "merge.begun"
# Tables that are written to a bucket at once, and how many wait for it.
_UPLOADS, _WAITING = 8, 256


@dataclass(frozen=True)
class MergeSummary:
    """What a merge wrote.

    Attributes:
        counts: of the rows.
        parts: that were read.
        planned: when the list of images was made, ISO 8601; what was added later is not in the tables.
        images: in that list.
        seconds: of the merge.
        warnings: a line for each thing that the user should know.
        not_read: see `Plan.not_read_line`.
        files: names of the tables, failures.csv apart.
    """

    counts: TableCounts
    parts: int
    planned: str
    images: int
    seconds: float
    warnings: tuple[str, ...] = ()
    not_read: str = ""
    files: tuple[str, ...] = ()


@dataclass
class _Workers:
    """Sums the certificates of the parts."""

    pieces: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)

    def add(self, certificate: Mapping[str, Any]) -> None:
        made = {name: certificate[name] for name in ("fingerprint", "engine", "versions", "machine")}
        key = json.dumps(made, sort_keys=True)
        self.pieces[key] += 1
        self.seconds[key] += certificate["seconds"]
        self.stages.update(certificate["stage_seconds"])

    def record(self) -> list[dict[str, Any]]:
        return [
            {**json.loads(key), "pieces": count, "seconds": round(self.seconds[key], 3)}
            for key, count in sorted(self.pieces.items())
        ]


def merge(place: Place, tables: Tables = CSV_ONLY, *, mixed: bool = False) -> MergeSummary:
    """Write the tables of a run whose pieces are all done. It may be repeated, also with other tables.

    Args:
        place: of the run.
        tables: what to write besides what the plan asks for.
        mixed: merge parts whose engines or decoders differ.

    Raises:
        DataError: if there is no run, pieces are missing, a part is damaged or was made differently.
    """
    plan = read_plan(place)
    if plan is None:
        raise DataError(f"there is no run in pieces in {place.name} (no {PLAN}): make one with predict --shard")
    refuse_single_run(place)
    _refuse_missing(plan, place)
    wanted = with_options(plan, tables)
    refuse_unplanned_columns(plan, place, wanted)
    require(wanted)
    if isinstance(place, Folder):
        wanted = wanted.including(place.folder)
    _refuse_others(place, wanted)
    place.put(_BEGUN, b"", create_only=False)
    if isinstance(place, Folder):
        summary = _write(plan, place, place.folder, wanted, mixed=mixed)
    else:
        with tempfile.TemporaryDirectory(prefix="mineral-batch-") as name:
            summary = _write(plan, place, Path(name), wanted, mixed=mixed)
            _upload(Path(name), place)
    place.delete(_BEGUN)
    return summary


def _refuse_others(place: Place, tables: Tables) -> None:
    """Check that the tables to be replaced are those of an earlier merge, or of one that was killed.

    Raises:
        DataError: naming those that were edited, or are somebody else's.
    """
    has_begun = place.get(_BEGUN) is not None
    if isinstance(place, Folder):
        refuse_edited_tables(place.folder, fix="")
        refuse_foreign_tables(place.folder, tables.replaced, "merge", has_begun=has_begun, fix="")
        return
    manifest = parse_manifest(place.get(RUN_MANIFEST) or b"")
    if has_begun and not isinstance(manifest, RunManifest):
        return
    known = manifest.digests if isinstance(manifest, RunManifest) else {}
    others = [
        name for name in tables.replaced if (found := place.digest(name)) is not None and found != known.get(name)
    ]
    if others:
        named = listed([f"{place.name}/{name}" for name in others])
        raise DataError(f"not written by merge, or edited since: {named}; move what you need, and merge again")


def _refuse_missing(plan: Plan, place: Place) -> None:
    missing = plan.to_do(place)
    if missing:
        images = sum(piece.images for piece in missing)
        names = listed([piece.id for piece in missing], _NAMED)
        raise DataError(
            f"{len(missing)} of {counted(len(plan.pieces), 'piece')} ({counted(images)}) "
            f"{'is' if len(missing) == 1 else 'are'} not done in {place.name}: {names}; rerun the same predict "
            "command, with --shard 1/1 to do all that is missing, then merge again"
        )


def _write(plan: Plan, place: Place, folder: Path, tables: Tables, *, mixed: bool) -> MergeSummary:
    clock, contract = time.monotonic(), plan.read_contract()
    check_prevalence(contract, Path(plan.model["file"]), tables)
    reader = _Reader(plan, place, mixed=mixed)
    # The estimate needs all results before the first row is written; the tables are streamed a second time.
    shift = prevalence_shift(contract, tables, _Reader(plan, place, mixed=mixed).results)
    counts = write_tables(folder, adjusted(reader.results(), shift, tables), contract, tables)
    if tables.per_image:
        note_written(folder, folder / PER_IMAGE)
    write_manifest(folder, _record(plan, reader.workers, counts, tables, shift))
    return MergeSummary(
        counts,
        len(plan.pieces),
        plan.started,
        plan.images,
        time.monotonic() - clock,
        tuple(reader.warnings()),
        plan.not_read_line,
        tables.files,
    )


def _record(
    plan: Plan, workers: _Workers, counts: TableCounts, tables: Tables, shift: PrevalenceShift | None
) -> dict[str, Any]:
    """Return what run.json says of the merged run."""
    return {
        "schema": SCHEMA_VERSION,
        "started": plan.started,
        "finished": max(timestamp(), plan.started),  # the plan may be of a machine whose clock is ahead
        "inputs": list(plan.inputs),
        "inputs_named": plan.inputs_named,
        "not_read": dict(plan.not_read),
        "options": dict(plan.options),
        "tables": [*tables.files, *([FAILURES] if counts.failed else [])],
        "columns": list(tables.columns),
        "model": dict(plan.model),
        "fingerprint": dict(plan.fingerprint),
        "workers": workers.record(),
        "pictures": {
            "predicted": counts.predicted,
            "failed": counts.failed,
            "files_with_further_images": counts.further,
            "failed_by_stage": dict(sorted(counts.failures.items())),
        },
        "pieces": len(plan.pieces),
        "worker_seconds": round(workers.seconds.total(), 3),
        "stage_seconds": {name: round(value, 3) for name, value in sorted(workers.stages.items())},
        "versions": describe_software(),
        "machine": {"system": platform.platform(), "processor": platform.machine()},
        "prevalence": shift and shift.record(),
        "decimals": tables.decimals,
        "level": tables.level,
        "specimen": tables.specimen,
        "table_counts": counts.record(),
    }


class _Reader:
    """Reads the parts one after the other, in the order of the plan."""

    def __init__(self, plan: Plan, place: Place, *, mixed: bool) -> None:
        self.workers = _Workers()
        self._plan, self._place, self._mixed = plan, place, mixed
        self._others: set[str] = set()

    def results(self) -> Iterator[Result]:
        """Yield every result once."""
        for piece in self._plan.pieces:
            part = self._part(piece)
            self.workers.add(part.certificate)
            yield from part.results

    def _part(self, piece: Piece) -> Part:
        where = f"{self._place.name}/{piece.part}"
        content = self._place.get(piece.part)
        if content is None:
            raise DataError(f"{where} was deleted meanwhile: rerun the predict command that made it, then merge again")
        part = decode_part(content, where)
        if len(part.results) != piece.images:
            raise DataError(
                f"{where} has {len(part.results)} rows where the plan has {piece.images}: delete it and rerun the "
                f"command that made it, then merge again"
            )
        self._check(part, where)
        return part

    def _check(self, part: Part, where: str) -> None:
        made, planned = part.certificate["fingerprint"], self._plan.fingerprint
        differing = [name for name in planned if made.get(name) != planned[name]]
        for name in differing:
            if not (self._mixed and name in MAY_DIFFER):
                raise DataError(
                    f"{where} was {describe_difference({name: planned[name]}, {name: made.get(name, 'unknown')})}: "
                    f"delete it and rerun" + (", or merge with --allow-mixed-engines" if name in MAY_DIFFER else "")
                )
            self._others.add(f"{name} {made[name]}")

    def warnings(self) -> Iterator[str]:
        """Yield a line if engines were mixed."""
        if self._others:
            yield (
                f"parts were made with different engines or decoders ({listed(sorted(self._others))} besides those of "
                f"the plan): probabilities may differ in the last digits"
            )


def _upload(folder: Path, place: Place) -> None:
    """Write the tables to the place, run.json last, as on a disk."""
    place.delete(RUN_MANIFEST)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RUN_MANIFEST)
    with ThreadPoolExecutor(_UPLOADS, thread_name_prefix="upload") as pool:
        for begin in range(0, len(files), _WAITING):  # a layout per image has as many files as images
            batch = files[begin : begin + _WAITING]
            list(pool.map(lambda path: place.put_file(path.relative_to(folder).as_posix(), path), batch))
    for name in (FAILURES, SPECIMENS):
        if not (folder / name).exists():
            place.delete(name)
    place.put_file(RUN_MANIFEST, folder / RUN_MANIFEST)
