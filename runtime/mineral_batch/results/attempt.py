"""One attempt at a run: images through the engine into the journal, and from there into the tables and run.json."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from mineral_batch.images.decoder import Decoder
from mineral_batch.model.contract import ModelContract
from mineral_batch.pipeline import StageTimes
from mineral_batch.predictor import Predictor
from mineral_batch.results.corrections import adjusted, prevalence_shift
from mineral_batch.results.fingerprint import ENGINE_LATER, file_digest
from mineral_batch.results.inputs import INPUTS_IN_MANIFEST, InputRoots, Inputs
from mineral_batch.results.journal import Journal
from mineral_batch.results.manifest import (
    describe_engine,
    describe_model,
    describe_software,
    timestamp,
    write_manifest,
    written_counts,
)
from mineral_batch.results.rows import TableCounts
from mineral_batch.results.schema import FAILURES, PARTIAL, PER_IMAGE, SCHEMA_VERSION
from mineral_batch.results.write import Tables, write_partial, write_tables
from mineral_batch.results.written import note_written, refuse_edited_tables
from mineral_batch.storage.urls import without_secrets
from mineral_batch.system import peak_memory_mib
from mineral_batch.types import Failure, Result, Source

_NEXT = "; "


@dataclass(frozen=True)
class RunSummary:
    """What a run did.

    Attributes:
        predicted: rows of predictions.csv, those of earlier runs included.
        failed: rows of failures.csv, likewise.
        new: images that this run predicted or failed to predict.
        new_failed: of these, the images that it failed to predict.
        kept: of the rows, how many are of images that are not among this run's inputs.
        damaged: saved results that were damaged on disk, and predicted again.
        seconds: of this run, without opening the model.
        complete: False if it was stopped; the tables are then as they were, and the numbers are of what is saved.
        counts: of the rows that were written; None if it was stopped.
        warnings: a line for each thing that the user should know.
        not_read: a line that counts what is in the folders beside the images; empty if there is nothing to say.
        files: names of the tables that were written, failures.csv apart.
    """

    predicted: int
    failed: int
    new: int
    new_failed: int
    kept: int
    damaged: int
    seconds: float
    complete: bool
    counts: TableCounts | None = None
    warnings: tuple[str, ...] = ()
    not_read: str = ""
    files: tuple[str, ...] = ()

    @property
    def reused(self) -> int:
        """Images among this run's inputs that an earlier run had done."""
        return self.predicted + self.failed - self.new - self.kept

    @property
    def is_model_at_fault(self) -> bool:
        """Whether the images could be read, but the model's output was never a probability."""
        counts = self.counts
        return counts is not None and not counts.predicted and 0 < counts.failed == counts.failures["infer"]


class Attempt:
    """One run, from its first image to its manifest.

    Args:
        predictor: open; it stays the caller's.
        decoder: that the predictor has chosen for these images.
        inputs: of the run.
        folder: of the output.
        tables: to write.
    """

    def __init__(self, predictor: Predictor, decoder: Decoder, inputs: Inputs, folder: Path, tables: Tables) -> None:
        self._predictor = predictor
        self._decoder = decoder
        self._inputs = inputs
        self._folder = folder
        self._tables = tables
        self._started = datetime.now(UTC)
        self._clock = time.monotonic()
        self._times = StageTimes()
        self._decoded_before = dict(decoder.counts)
        self._engine_version = predictor.engine_identity
        self._done = 0
        self._failed = 0

    def predict(
        self,
        journal: Journal,
        sources: Iterator[Source | Failure],
        seen: Callable[[Result | None], object],
        stop: Callable[[], bool],
    ) -> bool:
        """Predict what the journal lacks; return False if it was stopped."""
        roots, wanted = InputRoots(self._inputs.existing), _Stoppable(sources, stop)
        results = self._predictor.predict(
            journal.unfinished(iter(wanted), seen), with_exif=self._tables.needs_exif, times=self._times
        )
        # Whatever ends this, the threads have ended before anything that they use is closed.
        with closing(results):
            for result in results:
                if self._done % self._predictor.batch_size == 0:
                    self._note_engine(journal)
                if isinstance(result, Failure) and result.stage == "read":
                    roots.require(result, journal.path)
                journal.add(result)
                self._done += 1
                self._failed += isinstance(result, Failure)
                seen(result)
        journal.commit()
        return not wanted.stopped

    def _note_engine(self, journal: Journal) -> None:
        """Before the first results of a batch whose engine is not the fingerprint's, so that a kill cannot lose it."""
        version = self._predictor.engine_version
        if version != self._engine_version:
            self._engine_version = version
            noted = journal.facts().get(ENGINE_LATER)
            known = noted.split(_NEXT) if noted else []
            engine = f"{self._predictor.backend}, {version}"
            if engine not in known:
                journal.note(ENGINE_LATER, _NEXT.join([*known, engine]))

    def summary(self, journal: Journal) -> RunSummary:
        """Return what was done so far; without the tables' own counts."""
        predicted, failed = journal.counts()
        return RunSummary(
            predicted=predicted,
            failed=failed,
            new=self._done,
            new_failed=self._failed,
            kept=0,
            damaged=journal.damaged,
            seconds=time.monotonic() - self._clock,
            complete=False,
            warnings=tuple(self._inputs.warnings()),
            not_read=self._inputs.skipped.line(),
        )

    def mark_damaged(self, journal: Journal) -> Tables:
        """Return the tables, with the column `damaged` if damaged images are predicted, or were by an earlier run."""
        if self._predictor.keeps_damaged or journal.has_damaged():
            self._tables = self._tables.marking_damaged()
        return self._tables

    def write_partial(self, journal: Journal) -> None:
        """Write the table of what there is so far, if there is anything."""
        if journal.counts()[0]:
            contract, tables = self._predictor.contract, self.mark_damaged(journal)
            shift = prevalence_shift(contract, tables, partial(journal.results, kept=False))
            results = adjusted(journal.results(kept=False), shift, tables)
            write_partial(self._folder, results, contract, tables)

    def write(self, journal: Journal, options: Mapping[str, Any]) -> RunSummary:
        """Write all tables, unless they are there already, and last run.json.

        Args:
            journal: of the run, complete.
            options: of the command, for run.json.

        Raises:
            DataError: if a table was edited meanwhile, or the disk is full.
        """
        refuse_edited_tables(self._folder)
        contract, tables = self._predictor.contract, self.mark_damaged(journal)
        shift = prevalence_shift(contract, tables, journal.results)
        key = _tables_key(contract, tables, journal.digest())
        counts = written_counts(self._folder, key, tables)
        if counts is None:
            counts = write_tables(self._folder, adjusted(journal.results(), shift, tables), contract, tables)
            if tables.per_image:
                note_written(self._folder, self._folder / PER_IMAGE)
        else:
            (self._folder / PARTIAL).unlink(missing_ok=True)
        summary = replace(
            self.summary(journal),
            complete=True,
            counts=counts,
            predicted=counts.predicted,
            failed=counts.failed,
            kept=journal.kept(),
            files=tables.files,
        )
        record = self._record(summary, counts, journal.facts(), options)
        record |= {"tables_key": key, "table_counts": counts.record()}
        record |= {"prevalence": shift and shift.record(), "decimals": tables.decimals}
        write_manifest(self._folder, record)
        return summary

    def _record(
        self, summary: RunSummary, counts: TableCounts, identity: Mapping[str, str], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what run.json says of this run."""
        return {
            "schema": SCHEMA_VERSION,
            "started": timestamp(self._started),
            # Not by the clock, which may have been put back meanwhile.
            "finished": timestamp(self._started + timedelta(seconds=summary.seconds)),
            "inputs": self._inputs.first_named(INPUTS_IN_MANIFEST),
            "inputs_named": self._inputs.count_named(),
            "inputs_missing": len(self._inputs.missing),
            "inputs_without_images": without_secrets(self._inputs.empty[:INPUTS_IN_MANIFEST]),
            "not_read": self._inputs.skipped.record(),
            "options": dict(options),
            "tables": [*self._tables.files, *([FAILURES] if counts.failed else [])],
            "columns": list(self._tables.columns),
            "level": self._tables.level,
            "specimen": self._tables.specimen,
            "model": describe_model(self._predictor.model, self._predictor.contract),
            "fingerprint": dict(identity),
            "engine": describe_engine(self._predictor),
            "decoder": self._decoding(),
            "pictures": {
                "predicted": counts.predicted,
                "failed": counts.failed,
                "damaged": counts.damaged,
                "files_with_further_images": counts.further,
                "failed_by_stage": dict(sorted(counts.failures.items())),
                "from_earlier_runs": summary.reused,
                "of_other_inputs": summary.kept,
                "damaged_results_predicted_again": summary.damaged,
            },
            "seconds": round(summary.seconds, 3),
            "pictures_per_second": round(self._done / summary.seconds, 2) if self._done else None,
            "stage_seconds": self._times.rounded(),
            "peak_memory_mib": None if (peak := peak_memory_mib()) is None else round(peak, 1),
            "versions": describe_software(),
            "machine": {"system": platform.platform(), "processor": platform.machine()},
        }

    def _decoding(self) -> dict[str, Any]:
        """`pictures` says where those of this run were decoded, and why not on the GPU, where there is a choice."""
        counts = self._decoder.counts
        return {
            "name": self._decoder.name,
            "version": self._decoder.version,
            "chosen": self._predictor.decoder_choice,
            "pictures": {where: counts[where] - self._decoded_before.get(where, 0) for where in sorted(counts)},
        }


def _tables_key(contract: ModelContract, tables: Tables, results: str) -> str:
    """A digest of everything that a byte of the tables depends on."""
    made_by = (describe_software(), contract.labels, contract.thresholds, contract.is_calibrated)
    parts = [*made_by, tables.files, tables.columns, tables.decimals, tables.level, results]
    if tables.prevalence is not None:
        prevalence = Path(tables.prevalence)
        parts.append(file_digest(prevalence) if prevalence.is_file() else tables.prevalence)
    if tables.specimen is not None:
        listed_in = Path(tables.specimen)
        parts += ["specimen", file_digest(listed_in) if listed_in.is_file() else tables.specimen]
    if tables.level is not None and tables.minerals is not None:
        parts += ["minerals", file_digest(Path(tables.minerals))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class _Stoppable:
    """Sources until `stop` returns True."""

    def __init__(self, sources: Iterable[Source | Failure], stop: Callable[[], bool]) -> None:
        self.stopped = False
        self._sources = sources
        self._stop = stop

    def __iter__(self) -> Iterator[Source | Failure]:
        for source in self._sources:
            if self._stop():
                self.stopped = True
                return
            yield source
