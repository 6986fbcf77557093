"""The tables of a journal, and how those of earlier releases become today's."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from mineral_batch.errors import DataError
from mineral_batch.results.journal_rows import checksum

# Of the tables below; kept in SQLite's own `user_version`, which is 0 in a new file.
_SCHEMA_VERSION = 4
# Names are bytes: a file's name need not be text. `listing` is this run's order of files, `result` all runs' results.
_TABLES = {
    "fingerprint": "key TEXT PRIMARY KEY, value TEXT NOT NULL",
    "listing": "position INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, size INTEGER NOT NULL, "
    "modified INTEGER NOT NULL",
    "result": "name BLOB PRIMARY KEY, size INTEGER NOT NULL, modified INTEGER NOT NULL, probabilities BLOB, "
    "width INTEGER, height INTEGER, has_capture INTEGER NOT NULL, time TEXT, latitude REAL, longitude REAL, "
    "stage TEXT, reason TEXT, familiarity REAL, further INTEGER, checksum INTEGER",
}
_IDENTITY = "name, size, modified"
_VALUES = "probabilities, width, height, has_capture, time, latitude, longitude, stage, reason, familiarity, further"
#: Of `result`, in the order of a `journal_rows.Row`.
COLUMNS = f"{_IDENTITY}, {_VALUES}, checksum"
# Views of this connection only, kept in no file. A listed image's result counts if the file is still what it was.
_VIEWS = (
    f"CREATE TEMP VIEW answered AS SELECT position, {COLUMNS} FROM listing JOIN result USING ({_IDENTITY})",  # noqa: S608
    f"CREATE TEMP VIEW kept AS SELECT {COLUMNS} FROM result "  # noqa: S608
    "WHERE NOT EXISTS (SELECT 1 FROM listing WHERE listing.name = result.name)",
)


def create_tables(db: sqlite3.Connection, path: Path, *, restart: bool) -> None:
    """Make the tables that are missing, in the caller's transaction; bring those of an earlier release up to date.

    Args:
        db: of the journal.
        path: of its file, for the message.
        restart: begin with empty tables, whatever there was.

    Raises:
        DataError: if a later release made them.
    """
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version not in range(_SCHEMA_VERSION + 1) and not restart:
        raise DataError(
            f"{path} was made by another release of mineral-batch (version {version} of its tables, this one reads "
            f"{_SCHEMA_VERSION}): choose another folder with -o, or discard its results with --restart"
        )
    for table, columns in _TABLES.items():
        if restart:
            db.execute(f"DROP TABLE IF EXISTS {table}")
        db.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
    if 0 < version < _SCHEMA_VERSION and not restart:
        _upgrade(db, version)
    db.execute("DELETE FROM listing")
    db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")


def create_views(db: sqlite3.Connection) -> None:
    """Make the views `answered`, this run's results, and `kept`, those of images that it has not listed."""
    for view in _VIEWS:
        db.execute(view)


def _upgrade(db: sqlite3.Connection, version: int) -> None:
    """Add the columns that an earlier version lacks: 2 added checksums, 3 the familiarity, 4 further photos."""
    db.execute("ALTER TABLE result ADD COLUMN further INTEGER")
    if version <= 2:
        db.execute("ALTER TABLE result ADD COLUMN familiarity REAL")
    if version == 1:
        db.execute("ALTER TABLE result ADD COLUMN checksum INTEGER")
        db.create_function("checksum_of", -1, lambda *row: checksum(row), deterministic=True)
        db.execute(f"UPDATE result SET checksum = checksum_of({_IDENTITY}, {_VALUES})")  # noqa: S608
