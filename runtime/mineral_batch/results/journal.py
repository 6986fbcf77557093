"""What a run has done so far, safe at every moment: a SQLite file in the output folder.

Results are committed while the run goes on; the tables are written from here when it is complete, in a fixed order, so
that a run which was killed and started again ends with the same bytes as one that was not. The journal stays beside the
tables: the same command later predicts only what is new or changed, and rows of other inputs stay until `prune`.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from mineral_batch.errors import DataError
from mineral_batch.files import cannot_write
from mineral_batch.images.decode import NOTHING_DECODED
from mineral_batch.images.limits import MAX_PIXELS, exceeded_pixels
from mineral_batch.results.fingerprint import refuse_other
from mineral_batch.results.journal_rows import (
    Listed,
    Row,
    checksum,
    decode_result,
    encode_values,
    is_intact,
    source_identity,
)
from mineral_batch.results.journal_schema import COLUMNS, create_tables, create_views
from mineral_batch.types import Failure, Result, Source

JOURNAL = "journal.sqlite"

# How long results may wait for their commit: what a kill can cost.
_SECONDS_BETWEEN_COMMITS = 1.0
# Results that are written to SQLite at once.
_ROWS_AT_ONCE = 256
# Sources that are compared with earlier results at once: so many, or as many as have these bytes together, because the
# members of a compressed archive are in memory.
_SOURCES_AT_ONCE = 256
_SOURCES_AHEAD = 16
_SECONDS_FOR_A_CHUNK = 0.01
_BYTES_AT_ONCE = 32 * 2**20


class Journal:
    """The results of the runs into one output folder.

    Args:
        folder: of the output; made if absent.
        fingerprint: everything that changes results, as text. A journal made under another one is refused.
        restart: forget what earlier runs did.
        with_exif: results without when and where the image was taken do not count as done.
        with_familiarity: predictions without familiarity do not count as done.
        keep_damaged: predictions of damaged images count as done, and failures to decode do not unless that was tried;
            without it, the other way round.
        max_pixels: of this run. Images that are larger, and images refused for another limit, do not count as done.

    Attributes:
        damaged: saved results of this run's images whose checksum is wrong; the images are predicted again.

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
        with_familiarity: bool = False,
        keep_damaged: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.folder = Path(folder)
        self.path = self.folder / JOURNAL
        self.damaged = 0
        self._with_exif = with_exif
        self._with_familiarity = with_familiarity
        self._keep_damaged = keep_damaged
        self._max_pixels = max_pixels
        self._position = 0
        self._in_flight: dict[str, tuple[int, int]] = {}
        self._unwritten: list[Row] = []
        # None once there was something to do.
        self._listed: Listed | None = Listed()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error, fix="choose another folder with -o") from None
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
        """Lock the file until it is closed, or this process ends however it ends; create or check what is in it."""
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        # KiB: names come in order, so a few pages serve as well as many, and memory is the same for any number of them.
        self._db.execute("PRAGMA cache_size = -256")
        # One transaction: a kill in the middle leaves the file as it was, be it empty.
        self._db.execute("BEGIN EXCLUSIVE")
        create_tables(self._db, self.path, restart=restart)
        self._check(fingerprint)
        self._db.execute("COMMIT")
        create_views(self._db)
        self._has_results = self._db.execute("SELECT EXISTS (SELECT 1 FROM result)").fetchone()[0] == 1
        self._begin()

    def _check(self, fingerprint: Mapping[str, str]) -> None:
        earlier = dict(self._db.execute("SELECT key, value FROM fingerprint"))
        refuse_other(self.folder, earlier, fingerprint)
        self._db.executemany("INSERT OR REPLACE INTO fingerprint VALUES (?, ?)", fingerprint.items())

    def _begin(self) -> None:
        self._db.execute("BEGIN")
        self._committed = time.monotonic()

    def unfinished(
        self, sources: Iterator[Source | Failure], reused: Callable[[None], object] = lambda _: None
    ) -> Iterator[Source | Failure]:
        """Note the order of all sources and yield, once each, those without a valid result.

        A result is valid while the file's size and time of change are what they were. What could not be read (as
        opposed to decoded) is tried again: a network folder may be back. `reused` is called for each valid one.

        Sources are compared in chunks, which are small where listing them is slow, so that nobody waits for a chunk to
        fill, and where there is work, so that a run which is stopped does not go on with many.
        """
        size, start = 1, time.monotonic()
        while chunk := _draw(sources, size):
            is_slow = time.monotonic() - start > _SECONDS_FOR_A_CHUNK
            unfinished, done = self._list(chunk)
            for _ in range(done):
                reused(None)
            size = 1 if is_slow else min(2 * size, _SOURCES_AHEAD if unfinished else _SOURCES_AT_ONCE)
            for source in unfinished:
                name, *identity = source_identity(source)
                self._in_flight[name] = (identity[0], identity[1])
                yield source
            start = time.monotonic()

    def _list(self, chunk: Sequence[Source | Failure]) -> tuple[list[Source | Failure], int]:
        """Note sources; return those without a result, and how many have one. A name that is listed is left out."""
        first = self._position
        rows = []
        for self._position, source in enumerate(chunk, first + 1):
            name, size, modified = source_identity(source)
            rows.append((self._position, os.fsencode(name), size, modified))
        with self._explaining():
            listed = self._db.executemany("INSERT OR IGNORE INTO listing VALUES (?, ?, ?, ?)", rows).rowcount
            if listed == len(rows) and not self._has_results:
                self._listed = None
                return list(chunk), 0
            known = self._db.execute(
                f"SELECT position, result.{COLUMNS.replace(', ', ', result.')} FROM listing "  # noqa: S608
                "LEFT JOIN result USING (name, size, modified) WHERE position > ? ORDER BY position",
                (first,),
            ).fetchall()
        unfinished = [chunk[position - first - 1] for position, *row in known if not self._is_done(row)]
        if unfinished:
            self._listed = None
        elif self._listed is not None:
            self._listed.add(row[1:] for row in known)
        return unfinished, len(known) - len(unfinished)

    def _is_done(self, row: Row) -> bool:
        if row[0] is None:
            return False
        if not is_intact(row):
            self.damaged += 1
            return False
        stage, reason = row[10], row[11]
        return self._is_prediction_done(row) if stage is None else self._is_failure_done(stage, reason)

    def _is_failure_done(self, stage: str, reason: str) -> bool:
        """Whether another try would fail again."""
        if stage == "decode" and exceeded_pixels(reason) not in (None, self._max_pixels):
            return False
        if stage == "decode" and self._keep_damaged:
            return reason.endswith(NOTHING_DECODED)
        return stage != "read"

    def _is_prediction_done(self, row: Row) -> bool:
        """Whether it has everything that this run gives, and would be made by this run."""
        has_exif, reason, familiarity = row[6], row[11], row[12]
        if row[4] * row[5] > self._max_pixels or (reason is not None and not self._keep_damaged):
            return False
        return bool(has_exif >= self._with_exif) and (familiarity is not None or not self._with_familiarity)

    def add(self, result: Result) -> None:
        """Save the result of a listed source; committed within a second.

        Raises:
            DataError: if the disk is full or gone; everything committed before is safe.
        """
        identity = self._in_flight.pop(result.path, None)
        if identity is None:
            identity = self._listed_identity(result.path)
        row = (os.fsencode(result.path), *identity, *encode_values(result))
        self._unwritten.append((*row, checksum(row)))
        if time.monotonic() - self._committed > _SECONDS_BETWEEN_COMMITS:
            self.commit()
        elif len(self._unwritten) >= _ROWS_AT_ONCE:
            self._write()

    def _listed_identity(self, name: str) -> tuple[int, int]:
        with self._explaining():
            found = self._db.execute("SELECT size, modified FROM listing WHERE name = ?", (os.fsencode(name),))
            size, modified = found.fetchone()
        return size, modified

    def _write(self) -> None:
        with self._explaining():
            places = ", ".join("?" * (COLUMNS.count(",") + 1))
            self._db.executemany(f"INSERT OR REPLACE INTO result ({COLUMNS}) VALUES ({places})", self._unwritten)  # noqa: S608
            self._unwritten.clear()

    def commit(self) -> None:
        """Make everything added so far survive a kill."""
        self._write()
        with self._explaining():
            self._db.execute("COMMIT")
            self._begin()

    def note(self, key: str, value: str) -> None:
        """Save a fact about the results that no later run is refused for; it stays until a `restart`."""
        with self._explaining():
            self._db.execute("INSERT OR REPLACE INTO fingerprint VALUES (?, ?)", (key, value))

    def facts(self) -> dict[str, str]:
        """Return the fingerprint, and what was noted beside it by this run or an earlier one."""
        with self._explaining():
            return dict(self._db.execute("SELECT key, value FROM fingerprint"))

    def counts(self) -> tuple[int, int]:
        """Return how many listed sources have a prediction, and how many a failure."""
        return (self._listed.predicted, self._listed.failed) if self._listed else self._counts("answered")

    def kept(self) -> int:
        """Return how many results are of images that this run has not listed."""
        return sum(self._counts("kept")) if self._keeps_any() else 0

    def _keeps_any(self) -> bool:
        """Whether there may be such results."""
        if self._listed is None:
            return True
        with self._explaining():
            (results,) = self._db.execute("SELECT count(*) FROM result").fetchone()
        return bool(results != self._listed.predicted + self._listed.failed)

    def _counts(self, view: str) -> tuple[int, int]:
        self._write()
        with self._explaining():
            counts = self._db.execute(f"SELECT count(probabilities), count(stage) FROM {view}")  # noqa: S608
            predicted, failed = counts.fetchone()
        return predicted, failed

    def has_prediction(self, name: str) -> bool:
        """Return whether an image has a prediction, by an earlier run or this one."""
        return self._exists("name = ? AND stage IS NULL", os.fsencode(name))

    def has_damaged(self) -> bool:
        """Return whether a damaged image was predicted, by an earlier run or this one."""
        self._write()
        return self._exists("stage IS NULL AND reason IS NOT NULL")

    def has_results_below(self, root: str) -> bool:
        """Return whether there is a result of an image in this folder or archive."""
        below = os.fsencode(root).rstrip(b"/") + b"/"
        return self._exists("name >= ? AND name < ?", below, below[:-1] + b"0")  # "0" is the character after "/"

    def _exists(self, condition: str, *values: bytes) -> bool:
        with self._explaining():
            found = self._db.execute(f"SELECT EXISTS (SELECT 1 FROM result WHERE {condition})", values)  # noqa: S608
            return bool(found.fetchone()[0])

    def digest(self) -> str:
        """Return a digest of all results in the order of `results`: the same digest, the same rows."""
        kept = self._digest_of("kept", "name") if self._keeps_any() else Listed().digest()
        listed = self._listed.digest() if self._listed else self._digest_of("answered", "position")
        return hashlib.sha256(kept + listed).hexdigest()

    def _digest_of(self, view: str, order: str) -> bytes:
        self._write()
        found = Listed()
        with self._explaining():
            rows = self._db.execute(f"SELECT checksum FROM {view} ORDER BY {order}")  # noqa: S608
            while block := rows.fetchmany(4096):
                found.add_checksums(checksum for (checksum,) in block)
        return found.digest()

    def prune(self) -> int:
        """Remove the results of images that this run has not listed; return how many."""
        with self._explaining():
            return self._db.execute("DELETE FROM result WHERE name IN (SELECT name FROM kept)").rowcount

    def results(self, *, kept: bool = True) -> Iterator[Result]:
        """Yield the results of other inputs of earlier runs by name, then those of all listed sources in their order.

        Args:
            kept: False leaves out those of earlier runs.
        """
        self._write()
        with self._explaining():
            if kept:
                yield from map(decode_result, self._db.execute(f"SELECT {COLUMNS} FROM kept ORDER BY name"))  # noqa: S608
            yield from map(decode_result, self._db.execute(f"SELECT {COLUMNS} FROM answered ORDER BY position"))  # noqa: S608

    def close(self) -> None:
        """Commit and let go of the file. Never raises: it also runs while an error is on its way."""
        with suppress(sqlite3.Error, DataError):
            self._write()
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
        """Turn SQLite's errors inside the block into one line for the user."""
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
            f"cannot write {self.path} ({error}); the results so far are saved: "
            f"free some space and rerun the same command"
        )


def made_with(folder: str | Path) -> dict[str, str]:
    """Return the fingerprint of the results in an output folder; empty if there are none, or they cannot be read."""
    path = Path(folder) / JOURNAL
    if not path.is_file():
        return {}
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=1)) as db:
        return dict(db.execute("SELECT key, value FROM fingerprint"))
    return {}


def _draw(sources: Iterator[Source | Failure], count: int) -> list[Source | Failure]:
    chunk, size = [], 0
    for source in islice(sources, count):
        chunk.append(source)
        size += 0 if isinstance(source, Failure) else source.size
        if size >= _BYTES_AT_ONCE:
            break
    return chunk
