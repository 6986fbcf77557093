"""A run into an output folder: resumable, one at a time, and with a certificate of what was done."""

from __future__ import annotations

import glob
import hashlib
import json
import platform
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL

from mineral_batch.errors import ContractError, DataError, MineralError
from mineral_batch.files import atomic_file
from mineral_batch.images.archives import is_archive
from mineral_batch.images.discover import find_sources
from mineral_batch.model.onnx_file import graph_digest
from mineral_batch.pipeline import StageTimes
from mineral_batch.results.journal import Journal, made_with
from mineral_batch.results.schema import FAILURES, RUN_MANIFEST, SCHEMA_VERSION
from mineral_batch.results.write import CSV_ONLY, Tables, require, write_partial, write_tables
from mineral_batch.types import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mineral_batch.model.contract import ModelContract
    from mineral_batch.predictor import Predictor
    from mineral_batch.types import Result, Source

# Of the inputs named, so many are told in the certificate.
_INPUTS_TOLD = 100
# What the fingerprint calls it.
_DECODER = "decoder"
# Noted beside it: what else the engine was for some of the results. A GPU short of memory takes smaller batches.
_ENGINE_LATER = "engine later"
_NEXT = "; "


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        predicted: pictures with a prediction, earlier runs' included.
        failed: pictures without.
        reused: of both, how many an earlier run had done.
        seconds: of this run, without opening the model.
        complete: False if it was stopped; the tables are then as they were.
    """

    predicted: int
    failed: int
    reused: int
    seconds: float
    complete: bool


def run(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    folder: Path,
    tables: Tables = CSV_ONLY,
    *,
    restart: bool = False,
    seen: Callable[[Result | None], object] = lambda result: None,
    stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Predict everything under `inputs` and write the tables, doing only what earlier runs into `folder` did not.

    Stopped at any moment, even by a kill, and started again, it ends with the same tables as one that was not.

    Args:
        predictor: the open model.
        inputs: see `mineral_batch.images.discover.find_sources`.
        folder: where the tables come; made if absent.
        tables: which ones; those that an earlier run left are brought up to date, too.
        restart: do everything again, whatever an earlier run did.
        seen: called with each new result, and with None for each source that an earlier run had done.
        stop: asked before each source; once it says True the batches in flight are finished and the run ends.

    Raises:
        DataError: if there is nothing to do, another run is writing there, an input has vanished, the disk is full, or
            an earlier run was made with another model or other options.
        BackendError: if the engine fails. What was predicted before either is kept.
    """
    tables = tables.including(folder)
    require(tables)
    sources = _not_empty(find_sources(inputs), inputs)
    # Before the fingerprint, which names the decoder; a run that goes on keeps the one that it began with.
    sources = predictor.choose_decoder(sources, None if restart else made_with(folder).get(_DECODER))
    attempt = _Attempt(predictor, inputs, folder, tables)
    identity = fingerprint(predictor)
    with Journal(folder, identity, restart=restart, with_exif=tables.needs_exif) as journal:
        try:
            complete = attempt.predict(journal, sources, seen, stop)
        except MineralError:
            with suppress(MineralError):
                attempt.leave_partial(journal)
            raise
        report = attempt.report(journal, complete)
        if complete:
            write_tables(folder, journal.results(), predictor.contract, tables)
            attempt.certify(report, journal.facts(), journal.failures())
        else:
            attempt.leave_partial(journal)
    return report


class _Attempt:
    """One run, from its first source to its certificate."""

    def __init__(self, predictor: Predictor, inputs: Sequence[str | Path], folder: Path, tables: Tables) -> None:
        self._predictor = predictor
        self._inputs = inputs
        self._folder = folder
        self._tables = tables
        self._started = datetime.now(UTC)
        self._clock = time.monotonic()
        self._times = StageTimes()
        self._decoded_before = dict(predictor.decoder.counts)
        self._engine_version = predictor.engine_identity
        self._done = 0

    def predict(
        self,
        journal: Journal,
        sources: Iterator[Source | Failure],
        seen: Callable[[Result | None], object],
        stop: Callable[[], bool],
    ) -> bool:
        """Predict what the journal lacks; False if it was stopped."""
        roots, wanted = _Roots(self._inputs), _Stoppable(sources, stop)
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
                seen(result)
        journal.commit()
        return not wanted.stopped

    def _note_engine(self, journal: Journal) -> None:
        """Before the first answers of a batch whose engine is not the fingerprint's, so that a kill cannot lose it."""
        version = self._predictor.engine_version
        if version != self._engine_version:
            self._engine_version = version
            noted = journal.facts().get(_ENGINE_LATER)
            known = noted.split(_NEXT) if noted else []
            told = f"{self._predictor.backend}, {version}"
            if told not in known:
                journal.note(_ENGINE_LATER, _NEXT.join([*known, told]))

    def report(self, journal: Journal, complete: bool) -> Report:
        predicted, failed = journal.counts()
        reused = predicted + failed - self._done
        return Report(predicted, failed, reused, time.monotonic() - self._clock, complete)

    def leave_partial(self, journal: Journal) -> None:
        """Let the user see what there is, if there is anything."""
        if journal.counts()[0]:
            write_partial(self._folder, journal.results(), self._predictor.contract, self._tables)

    def certify(self, report: Report, identity: dict[str, str], failures: dict[str, int]) -> None:
        """Write run.json: with what, on what and how fast the tables beside it were made.

        Raises:
            DataError: if the disk is full or gone.
        """
        certificate = {
            "schema": SCHEMA_VERSION,
            "started": self._started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "inputs": [str(given) for given in self._inputs[:_INPUTS_TOLD]],
            "inputs_named": len(self._inputs),
            "tables": [*self._tables.files, *([FAILURES] if report.failed else [])],
            "columns": list(self._tables.columns),
            "model": _model(self._predictor.model, self._predictor.contract),
            "fingerprint": identity,
            "engine": _engine(self._predictor),
            "decoder": _decoder(self._predictor, self._decoded_before),
            "pictures": {
                "predicted": report.predicted,
                "failed": report.failed,
                "failed_by_stage": failures,
                "from_earlier_runs": report.reused,
            },
            "seconds": round(report.seconds, 3),
            "pictures_per_second": round(self._done / report.seconds, 2) if self._done else None,
            "stage_seconds": self._times.rounded(),
            "peak_memory_mib": _peak_memory(),
            "versions": _versions(),
            "machine": {"system": platform.platform(), "processor": platform.machine()},
        }
        try:
            with atomic_file(self._folder / RUN_MANIFEST) as file:
                file.write(json.dumps(certificate, indent=2).encode("ascii") + b"\n")
        except OSError as error:
            raise DataError(
                f"cannot write {self._folder / RUN_MANIFEST}: {error.strerror or error}; the tables are complete: "
                f"make room and start the same command again"
            ) from None


def _not_empty(sources: Iterator[Source | Failure], inputs: Sequence[str | Path]) -> Iterator[Source | Failure]:
    """The same sources, once it is known that there is one: a mistyped name must not leave a folder behind."""
    first = next(sources, None)
    if first is None:
        raise DataError(f"no photographs under {', '.join(map(str, inputs))}: no file has the suffix of a picture")

    def again() -> Iterator[Source | Failure]:
        yield first
        yield from sources

    return again()


class _Stoppable:
    """Sources, until a stop is asked for."""

    def __init__(self, sources: Iterable[Source | Failure], is_asked: Callable[[], bool]) -> None:
        self.stopped = False
        self._sources = sources
        self._is_asked = is_asked

    def __iter__(self) -> Iterator[Source | Failure]:
        for source in self._sources:
            if self._is_asked():
                self.stopped = True
                return
            yield source


class _Roots:
    """The folders and archives that a run reads from, to tell a file that cannot be read from a drive that is gone."""

    def __init__(self, inputs: Iterable[str | Path]) -> None:
        self._devices: dict[str, int] = {}
        for given in inputs:
            root = _root(Path(given))
            with suppress(OSError):
                self._devices.setdefault(str(root), root.stat().st_dev)

    def require(self, failure: Failure, journal: Path) -> None:
        """Raises `DataError` if the file could not be read because what it lies in has vanished."""
        path = Path(failure.path)
        for root in (path, *path.parents):
            device = self._devices.get(str(root))
            if device is not None and not _is_on(root, device):
                raise DataError(
                    f"{root} is no longer there; what was predicted is safe in {journal}: "
                    f"bring it back and start the same command again"
                )


def _root(given: Path) -> Path:
    """The folder or archive behind something named on the command line: for a file or a glob what it lies in."""
    while glob.has_magic(str(given)) and not given.exists():
        given = given.parent
    return given if is_archive(given.name) or given.is_dir() else given.parent


def _is_on(root: Path, device: int) -> bool:
    """False where a drive was taken out, also where its empty mount point has stayed."""
    try:
        return root.stat().st_dev == device
    except OSError:
        return False


def fingerprint(predictor: Predictor) -> dict[str, str]:
    """Everything that changes a probability: results made under different ones are not mixed.

    Thresholds are not in it: they decide what the column `minerals` says, which is written anew from the journal.
    """
    contract = predictor.contract
    described = json.dumps([contract.labels, vars(contract.input)])
    return {
        "model": _graph(predictor.model)[:16],
        "labels and input": hashlib.sha256(described.encode()).hexdigest()[:16],
        "engine": f"{predictor.backend}, {predictor.engine_identity}",
        _DECODER: predictor.decoder.version,
    }


def _graph(model: Path) -> str:
    """The digest of what a model computes; of the whole file where that is no ONNX."""
    try:
        return graph_digest(model)
    except ContractError:
        return model_digest(model)


def model_digest(path: Path) -> str:
    """SHA-256 of a model file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _model(path: Path, contract: ModelContract) -> dict[str, Any]:
    return {
        "name": contract.name,
        "file": str(path),
        "sha256": model_digest(path),
        "labels": list(contract.labels),
        "thresholds": list(contract.thresholds),
    }


def _engine(predictor: Predictor) -> dict[str, Any]:
    return {
        "backend": predictor.backend,
        "device": predictor.device,
        "version": predictor.engine_version,
        "batch_size": predictor.batch_size,
        "passed_over": dict(predictor.skipped),
    }


def _decoder(predictor: Predictor, before: Mapping[str, int]) -> dict[str, Any]:
    """`pictures` says where those of this run were decoded, and why not on the GPU, where there is a choice."""
    counts = predictor.decoder.counts
    return {
        "name": predictor.decoder.name,
        "version": predictor.decoder.version,
        "chosen": predictor.decoder_choice,
        "pictures": {where: counts[where] - before.get(where, 0) for where in sorted(counts)},
    }


def _versions() -> dict[str, str]:
    return {
        "mineral-batch": _version("mineral-batch"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }


def _version(*distributions: str) -> str:
    for name in distributions:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "unknown"


def _peak_memory() -> float | None:
    """The most that this process has held, MiB; None where the system does not say."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
