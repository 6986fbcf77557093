"""run.json: with what, on what and how fast the tables beside it were made. It is written last."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import PIL

from mineral_batch.errors import one_line
from mineral_batch.files import write_file
from mineral_batch.model.contract import ModelContract
from mineral_batch.predictor import Predictor
from mineral_batch.results.fingerprint import file_digest
from mineral_batch.results.rows import TableCounts
from mineral_batch.results.schema import PREDICTIONS, RUN_MANIFEST, SCHEMA_VERSION, STAGES
from mineral_batch.results.write import Tables


@dataclass(frozen=True)
class RunManifest:
    """What run.json says, as far as the tables are judged by it.

    Attributes:
        record: everything, as it is in the file.
        labels: L, of the model.
        thresholds: L.
        predicted: number of rows of predictions.csv.
        failed: number of rows of failures.csv.
        tables: the names of the files beside it.
        digests: name -> SHA-256 of the tables that are single files.
    """

    record: Mapping[str, Any]
    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    predicted: int
    failed: int
    tables: tuple[str, ...]
    digests: Mapping[str, str] = field(default_factory=dict)

    def problems(self) -> Iterator[str]:
        """Yield a line for everything in which run.json contradicts itself or this release's schema."""
        if self.record.get("schema") != SCHEMA_VERSION:
            yield f"schema {self.record.get('schema')!r}; this release reads {SCHEMA_VERSION}"
        if len(self.thresholds) != len(self.labels):
            yield "there must be one threshold per label"
        by_stage = self.record["pictures"].get("failed_by_stage", {})
        if sum(by_stage.values()) != self.failed or not set(by_stage) <= {*STAGES}:
            yield f"the failures by stage {by_stage} do not add up to {self.failed}"
        started, finished = str(self.record.get("started")), str(self.record.get("finished"))
        if not (is_time(started) and is_time(finished)) or started > finished:
            yield f"started {started} and finished {finished} are not times in this order"
        if PREDICTIONS not in self.tables:
            yield f"{PREDICTIONS} is not among its tables"


def parse_manifest(content: bytes) -> RunManifest | str:
    """Return what the bytes of a run.json say, or in one line why they are not of this schema."""
    try:
        record = json.loads(content, parse_constant=_refuse)
        return RunManifest(
            record=record,
            labels=tuple(map(str, record["model"]["labels"])),
            thresholds=tuple(map(float, record["model"]["thresholds"])),
            predicted=int(record["pictures"]["predicted"]),
            failed=int(record["pictures"]["failed"]),
            tables=tuple(map(str, record["tables"])),
            digests={str(name): str(digest) for name, digest in record.get("sha256", {}).items()},
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"not a run.json of this schema ({one_line(error)})"


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def is_time(value: object) -> bool:
    """Return whether a text is a time of ISO 8601."""
    try:
        datetime.fromisoformat(str(value))
    except ValueError:
        return False
    return True


def read_manifest(folder: Path) -> RunManifest | None:
    """Return the run.json of a folder; None if it is not there, damaged or of another release."""
    try:
        manifest = parse_manifest((folder / RUN_MANIFEST).read_bytes())
    except OSError:
        return None
    return manifest if isinstance(manifest, RunManifest) else None


def labels_of_run(table: Path) -> tuple[str, ...] | None:
    """Return the labels of the model that made a table; None if no run.json beside it knows the table."""
    manifest = read_manifest(table.parent)
    return manifest.labels if manifest is not None and table.name in manifest.tables else None


def other_thresholds(folder: Path, contract: ModelContract) -> bool:
    """Return whether the run in a folder had the same labels and other thresholds; no if there is none."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.labels != contract.labels:
        return False
    return manifest.thresholds != tuple(contract.thresholds)


def written_counts(folder: Path, key: str, tables: Tables) -> TableCounts | None:
    """Return what is in the tables if they are what a run is about to write; None if they must be written.

    Args:
        folder: of the output.
        key: a digest of everything that the tables depend on.
        tables: to be written; images' own tables are always written, because no digest covers them.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.record.get("tables_key") != key or tables.per_image:
        return None
    if set(manifest.digests) != set(manifest.tables) or not all((folder / name).is_file() for name in manifest.tables):
        return None
    return TableCounts.from_record(manifest.record["table_counts"])


def write_manifest(folder: Path, record: Mapping[str, Any]) -> None:
    """Write run.json beside its tables, with their digests.

    Raises:
        DataError: if it cannot be written.
    """
    tables = [name for name in record["tables"] if (folder / name).is_file()]
    whole = {**record, "sha256": {name: file_digest(folder / name) for name in tables}}
    write_file(
        folder / RUN_MANIFEST,
        json.dumps(whole, indent=2) + "\n",
        fix="the tables are complete: free some space and rerun the same command",
    )


def timestamp(moment: datetime | None = None) -> str:
    """Return a time in UTC as run.json has it; by default now."""
    return (moment or datetime.now(UTC)).isoformat(timespec="seconds")


def describe_model(path: Path, contract: ModelContract) -> dict[str, Any]:
    """Return the model's part of run.json."""
    return {
        "name": contract.name,
        "file": str(path),
        "sha256": file_digest(path),
        "labels": list(contract.labels),
        "thresholds": list(contract.thresholds),
        "thresholds_by": contract.provenance.get("thresholds"),
        "calibration": describe_calibration(contract),
        "measured": _measured(contract),
    }


def _measured(contract: ModelContract) -> dict[str, Any] | None:
    """Return how accurate the model is on held-out images, by its contract."""
    if contract.measured is None:
        return None
    return {
        "mean_ap": contract.measured.mean_ap,
        "images": contract.measured.images,
        "dataset": contract.measured.dataset,
    }


def describe_calibration(contract: ModelContract) -> dict[str, Any] | None:
    """Return on what and when the model was calibrated, and how well; None if its probabilities are not calibrated."""
    if contract.calibration is None:
        return None
    record = asdict(contract.calibration)
    return {name: record[name] for name in ("dataset", "images", "date", "before", "after")}


def describe_engine(predictor: Predictor) -> dict[str, Any]:
    """Return the engine's part of run.json."""
    return {
        "backend": predictor.backend,
        "device": predictor.device,
        "version": predictor.engine_version,
        "batch_size": predictor.batch_size,
        "passed_over": dict(predictor.skipped),
    }


def describe_software() -> dict[str, str]:
    """Return the versions of what every run uses."""
    return {
        "mineral-batch": _version("mineral-batch"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }


def _version(distribution: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(distribution)
    return "unknown"
