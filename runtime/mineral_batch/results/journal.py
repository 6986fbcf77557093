"""What a run has done so far, safe at every moment: a SQLite file in the output folder.

Results are committed while the run goes on; the tables are written from here when it is complete, in the order of the
files, so that a run which was killed and started again ends with the same bytes as one that was not. The journal stays
beside the tables: the same command later does only what is new or changed.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mineral_batch.errors import DataError
from mineral_batch.types import ExifInfo, Failure, Prediction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from mineral_batch.types import Result, Source

JOURNAL = "journal.sqlite"

# How long results may wait for their commit: what a kill can cost.
_SECONDS_BETWEEN_COMMITS = 1.0

# Of the tables below; kept in SQLite's own `user_version`, which is 0 in a new file.
_SCHEMA_VERSION = 1
# Names are bytes: a file's name need not be text. `listing` is this run's order of files, `result` all runs' answers.
_TABLES = {
    "fingerprint": "key TEXT PRIMARY KEY, value TEXT NOT NULL",
    "listing": "position INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, size INTEGER NOT NULL, "
    "modified INTEGER NOT NULL",
    "result": "name BLOB PRIMARY KEY, size INTEGER NOT NULL, modified INTEGER NOT NULL, probabilities BLOB, "
    "width INTEGER, height INTEGER, has_capture INTEGER NOT NULL, time TEXT, latitude REAL, longitude REAL, "
    "stage TEXT, reason TEXT",
}
# A result is this run's if the file is still what it was. A view of this connection only, kept in no file.
_ANSWERED = "CREATE TEMP VIEW answered AS SELECT * FROM listing JOIN result USING (name, size, modified)"


class Journal:
    """The results of the runs into one output folder.

    Args:
        folder: of the output; made if absent.
        fingerprint: everything that changes results, as text. A journal made under another one is refused.
        restart: forget what an earlier run did.
        with_exif: results without when and where the picture was taken do not count as done.

    Raises:
        DataError: if another run is writing there, the fingerprint differs, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        fingerprint: Mapping[str, str],
        *,
        restart: bool = False,
        with_exif: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.path = self.folder / JOURNAL
        self._with_exif = with_exif
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot make the folder {folder}: {error.strerror}; choose another with -o") from None
        with self._explaining():
            # A process that was just killed may need a moment to let go of the file.
            self._db = sqlite3.connect(self.path, timeout=1, isolation_level=None)
        try:
            with self._explaining():
                self._open(fingerprint, restart)
        except BaseException:
            self._db.close()
            raise

    def _open(self, fingerprint: Mapping[str, str], restart: bool) -> None:
        """Lock the file until it is closed, or this process ends however it ends; make or check what is in it."""
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        # KiB: names come in order, so a few pages serve as well as many, and memory is the same for any number of them.
        self._db.execute("PRAGMA cache_size = -256")
        # One transaction: a kill in the middle leaves the file as it was, be it empty.
        self._db.execute("BEGIN EXCLUSIVE")
        self._make_tables(restart)
        self._check(fingerprint)
        self._db.execute("COMMIT")
        self._db.execute(_ANSWERED)
        self._begin()

    def _make_tables(self, restart: bool) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _SCHEMA_VERSION) and not restart:
            raise DataError(
                f"{self.path} was made by another release of mineral-batch (version {version} of its tables, this one "
                f"reads {_SCHEMA_VERSION}): choose another folder with -o, or give --restart to forget what it holds"
            )
        for table, columns in _TABLES.items():
            if restart:
                self._db.execute(f"DROP TABLE IF EXISTS {table}")
            self._db.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
        self._db.execute("DELETE FROM listing")
        self._db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def _check(self, fingerprint: Mapping[str, str]) -> None:
        earlier = dict(self._db.execute("SELECT key, value FROM fingerprint"))
        differing = [key for key in fingerprint if earlier and earlier.get(key) != fingerprint[key]]
        if differing:
            changes = "; ".join(f"{key} was {earlier.get(key, 'unknown')}, is {fingerprint[key]}" for key in differing)
            raise DataError(
                f"{self.folder} holds results made otherwise ({changes}): "
                f"choose another folder with -o, or give --restart to forget them"
            )
        self._db.executemany("INSERT OR REPLACE INTO fingerprint VALUES (?, ?)", fingerprint.items())

    def _begin(self) -> None:
        self._db.execute("BEGIN")
        self._committed = time.monotonic()

    def unfinished(
        self, sources: Iterator[Source | Failure], reused: Callable[[None], object] = lambda _: None
    ) -> Iterator[Source | Failure]:
        """Note the order of all sources and pass on, once each, those without a valid result.

        A result is valid while the file's size and time of change are what they were. What could not be read (as
        against decoded) is tried again: a network folder may be back. `reused` is called for each valid one.
        """
        for source in sources:
            if isinstance(source, Failure):
                if self._list(source.path, 0, 0):
                    yield source
            elif self._list(source.name, source.size, source.modified):
                if self._has(source):
                    reused(None)
                else:
                    yield source

    def _list(self, name: str, size: int, modified: int) -> bool:
        """Note one source; False if it is in this run's list already."""
        with self._explaining():
            cursor = self._db.execute(
                "INSERT OR IGNORE INTO listing (name, size, modified) VALUES (?, ?, ?)",
                (os.fsencode(name), size, modified),
            )
        return cursor.rowcount == 1

    def _has(self, source: Source) -> bool:
        with self._explaining():
            known = self._db.execute(
                "SELECT 1 FROM result WHERE name = ? AND size = ? AND modified = ? AND stage IS NOT 'read' "
                "AND (has_capture >= ? OR stage IS NOT NULL)",
                (os.fsencode(source.name), source.size, source.modified, self._with_exif),
            )
            return known.fetchone() is not None

    def add(self, result: Result) -> None:
        """Keep the result of a listed source; committed within a second.

        Raises:
            DataError: if the disk is full or gone; everything committed before is safe.
        """
        with self._explaining():
            self._db.execute(
                "INSERT OR REPLACE INTO result SELECT name, size, modified, ?, ?, ?, ?, ?, ?, ?, ?, ? "
                "FROM listing WHERE name = ?",
                (*_columns(result), os.fsencode(result.path)),
            )
            if time.monotonic() - self._committed > _SECONDS_BETWEEN_COMMITS:
                self.commit()

    def commit(self) -> None:
        """Make everything added so far survive a kill."""
        with self._explaining():
            self._db.execute("COMMIT")
            self._begin()

    def note(self, key: str, value: str) -> None:
        """Keep a fact about the results that no later run is refused for; it stays until a `restart`."""
        with self._explaining():
            self._db.execute("INSERT OR REPLACE INTO fingerprint VALUES (?, ?)", (key, value))

    def facts(self) -> dict[str, str]:
        """The fingerprint, and what was noted beside it by this run or an earlier one."""
        with self._explaining():
            return dict(self._db.execute("SELECT key, value FROM fingerprint"))

    def counts(self) -> tuple[int, int]:
        """How many listed sources have a prediction, and how many a failure."""
        with self._explaining():
            counts = self._db.execute("SELECT count(probabilities), count(stage) FROM answered")
            predicted, failed = counts.fetchone()
        return predicted, failed

    def failures(self) -> dict[str, int]:
        """How many listed sources failed, by stage."""
        with self._explaining():
            stages = self._db.execute("SELECT stage, count(*) FROM answered GROUP BY stage ORDER BY stage")
            return {stage: count for stage, count in stages if stage is not None}

    def results(self) -> Iterator[Result]:
        """The results of all listed sources that have one, in the order of the list."""
        with self._explaining():
            rows = self._db.execute(
                "SELECT name, probabilities, width, height, has_capture, time, latitude, longitude, stage, reason "
                "FROM answered ORDER BY position"
            )
            yield from map(_result, rows)

    def close(self) -> None:
        """Commit and let go of the file. Never raises: it also runs while an error is on its way."""
        with suppress(sqlite3.Error):
            self._db.execute("COMMIT")
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """SQLite's errors inside the block, as one line for the user."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._explained(error) from None

    def _explained(self, error: sqlite3.Error) -> DataError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # above are finer distinctions
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return DataError(f"another run is writing into {self.folder}: wait for it or choose another folder with -o")
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return DataError(f"{self.path} is damaged or not a journal: remove it and start again")
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            return DataError(f"cannot write {self.path} ({error}): choose another folder with -o")
        return DataError(
            f"cannot write {self.path} ({error}); what was done before is safe: "
            f"make room and start the same command again"
        )


def made_with(folder: str | Path) -> dict[str, str]:
    """The fingerprint of the results in an output folder; empty if there are none, or they cannot be read now."""
    path = Path(folder) / JOURNAL
    if not path.is_file():
        return {}
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=1)) as db:
        return dict(db.execute("SELECT key, value FROM fingerprint"))
    return {}


def _columns(result: Result) -> tuple[object, ...]:
    """The columns of `result` behind the first three."""
    if isinstance(result, Failure):
        return None, None, None, 0, None, None, None, result.stage, result.reason
    probabilities = np.ascontiguousarray(result.probabilities, "<f4").tobytes()
    taken = result.exif or ExifInfo()
    place = (taken.time, taken.latitude, taken.longitude)
    return probabilities, result.width, result.height, result.exif is not None, *place, None, None


def _result(row: tuple[Any, ...]) -> Result:
    name, probabilities, width, height, has_capture, time_, latitude, longitude, stage, reason = row
    if probabilities is None:
        return Failure(os.fsdecode(name), stage, reason)
    exif = ExifInfo(time_, latitude, longitude) if has_capture else None
    return Prediction(os.fsdecode(name), np.frombuffer(probabilities, "<f4"), width, height, exif)
