"""What people decided about the images of a run: append-only, safe the moment it is made.

Each decision is one committed row of `review.sqlite` in the run's folder; undoing one appends a row that says so. The
file is locked while a review is open, so that two sessions cannot decide past each other.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, get_args

from mineral_batch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DECISIONS = "review.sqlite"

Status = Literal["labeled", "unsure", "rejected"]
STATUSES: tuple[str, ...] = get_args(Status)

_SCHEMA_VERSION = 1
_OLD_STATUSES = {"labelled": "labeled"}  # read from older files, which stay as they are
_TABLE = """
CREATE TABLE IF NOT EXISTS decision (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    path BLOB NOT NULL,
    status TEXT NOT NULL,
    minerals TEXT NOT NULL,
    machine TEXT NOT NULL,
    reviewer TEXT NOT NULL,
    time TEXT NOT NULL,
    undoes INTEGER REFERENCES decision (number)
)
"""
_INSERT = "INSERT INTO decision (path, status, minerals, machine, reviewer, time, undoes) VALUES (?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True)
class Decision:
    """What a person said about one image.

    Attributes:
        path: the image, as the run's tables name it.
        status: `labeled` with all minerals that it shows (none for an empty tuple); `unsure`; or `rejected`, which
            says only that it does not show `minerals`.
        minerals: labels.
        machine: the labels that the model gave, beside which the person decided.
        reviewer: who.
        time: when, ISO 8601 in UTC.
        number: the order of decisions.
    """

    path: str
    status: str
    minerals: tuple[str, ...]
    machine: tuple[str, ...]
    reviewer: str
    time: str
    number: int = 0


class Decisions:
    """The decisions about one run; safe from several threads.

    Args:
        folder: of the run.

    Raises:
        DataError: if another session has it open, or it cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / DECISIONS
        self._lock = threading.Lock()
        self._current: dict[str, list[Decision]] = {}  # path -> its decisions, the last one in force
        self._made: list[Decision] = []  # all of these, in their order
        #: Status -> how many images have it.
        self.counts: Counter[str] = Counter()
        try:
            self._db = sqlite3.connect(self.path, timeout=1, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("BEGIN EXCLUSIVE")
            self._check_version()
            self._db.execute(_TABLE)
            self._db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            self._db.execute("COMMIT")
            self._replay()
        except sqlite3.DatabaseError as error:
            self._refuse(error)

    def _check_version(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _SCHEMA_VERSION):
            self._db.close()
            raise DataError(
                f"{self.path} was made by another release of mineral-batch (version {version}, this one reads "
                f"{_SCHEMA_VERSION}): move it away to begin anew"
            )

    def _refuse(self, error: sqlite3.DatabaseError) -> None:
        if "locked" in str(error):
            raise DataError(
                f"another review of {self.path.parent} is open: use its address, or stop it first"
            ) from None
        raise DataError(f"cannot use {self.path}: {error}; move it away to begin anew") from None

    def _replay(self) -> None:
        """Read the decisions that were not undone."""
        for row in self._db.execute(
            "SELECT path, status, minerals, machine, reviewer, time, number FROM decision WHERE undoes IS NULL "
            "AND number NOT IN (SELECT undoes FROM decision WHERE undoes IS NOT NULL) ORDER BY number"
        ):
            path, status, minerals, machine, reviewer, time, number = row
            self._take(
                Decision(
                    path.decode("utf-8", "surrogateescape"),
                    _OLD_STATUSES.get(status, status),
                    tuple(json.loads(minerals)),
                    tuple(json.loads(machine)),
                    reviewer,
                    time,
                    number,
                )
            )

    def decide(
        self, path: str, status: str, minerals: Sequence[str], *, machine: Sequence[str], reviewer: str
    ) -> Decision:
        """Record a decision; it is on disk when this returns.

        Raises:
            DataError: if the disk refuses it.
        """
        decision = Decision(path, status, tuple(minerals), tuple(machine), reviewer, now())
        (recorded,) = self.decide_all([decision])
        return recorded

    def decide_all(self, decisions: Sequence[Decision]) -> list[Decision]:
        """Record decisions, all or none; they are on disk when this returns.

        Args:
            decisions: without numbers.

        Returns:
            The same with their numbers.

        Raises:
            DataError: if the disk refuses them.
        """
        with self._lock:
            numbers = self._insert([(decision, None) for decision in decisions])
            recorded = [replace(one, number=number) for one, number in zip(decisions, numbers, strict=True)]
            for decision in recorded:
                self._take(decision)
        return recorded

    def undo(self, *, reviewer: str) -> Decision | None:
        """Take back the last decision that is in force and return it; None if there is none.

        Raises:
            DataError: if the disk refuses it.
        """
        with self._lock:
            if not self._made:
                return None
            last = self._made[-1]
            self._insert([(Decision(last.path, "undo", (), (), reviewer, now()), last.number)])
            self._made.pop()
            stack = self._current[last.path]
            stack.pop()
            self.counts[last.status] -= 1
            if stack:
                self.counts[stack[-1].status] += 1
            else:
                del self._current[last.path]
        return last

    def _take(self, decision: Decision) -> None:
        """Add a recorded decision, the latest one, to those in force."""
        stack = self._current.setdefault(decision.path, [])
        if stack:
            self.counts[stack[-1].status] -= 1
        stack.append(decision)
        self.counts[decision.status] += 1
        self._made.append(decision)

    def _insert(self, rows: Sequence[tuple[Decision, int | None]]) -> list[int]:
        """Append rows in one transaction, each with the number of what it undoes; returns their numbers."""
        numbers = []
        try:
            with self._db:
                self._db.execute("BEGIN")
                for decision, undoes in rows:
                    done = self._db.execute(_INSERT, (*_cells(decision), undoes))
                    assert done.lastrowid is not None
                    numbers.append(done.lastrowid)
        except sqlite3.DatabaseError as error:
            raise DataError(f"cannot write {self.path}: {error}; free some space, then decide again") from None
        return numbers

    def recorded_labels(self) -> set[tuple[str, tuple[str, ...]]]:
        """(image, labels) of every decision that was ever made, also if it is no longer in force."""
        found = self._db.execute("SELECT path, minerals FROM decision WHERE undoes IS NULL")
        return {(path.decode("utf-8", "surrogateescape"), tuple(json.loads(minerals))) for path, minerals in found}

    def get(self, path: str) -> Decision | None:
        """The decision in force about an image."""
        stack = self._current.get(path)
        return stack[-1] if stack else None

    def __iter__(self) -> Iterator[Decision]:
        """The decisions in force, in the order in which they were made."""
        return iter(sorted((stack[-1] for stack in self._current.values()), key=lambda d: d.number))

    def __len__(self) -> int:
        """How many images have a decision."""
        return len(self._current)

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def now() -> str:
    """The time as decisions have it: ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _cells(decision: Decision) -> tuple[object, ...]:
    """The columns of a row, up to `undoes`."""
    name = decision.path.encode("utf-8", "surrogateescape")
    minerals, machine = json.dumps(list(decision.minerals)), json.dumps(list(decision.machine))
    return name, decision.status, minerals, machine, decision.reviewer, decision.time


def read_decisions(folder: str | Path) -> list[Decision]:
    """The decisions about a run, for reading only; empty if nobody reviewed it.

    Raises:
        DataError: if a review is open, or the file is damaged.
    """
    if not (Path(folder) / DECISIONS).is_file():
        return []
    with Decisions(folder) as decisions:
        return list(decisions)


def read_recorded_labels(folder: str | Path) -> set[tuple[str, tuple[str, ...]]]:
    """`Decisions.recorded_labels` of a run; empty if nobody reviewed it.

    Raises:
        DataError: as `read_decisions`.
    """
    if not (Path(folder) / DECISIONS).is_file():
        return set()
    with Decisions(folder) as decisions:
        return decisions.recorded_labels()
