"""The rows of the journal's table `result`: a result as SQLite holds it, and its checksum."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mineral_batch.types import ExifInfo, Failure, Prediction, Result, Source

#: name, size, modified, probabilities, width, height, has_capture, time, latitude, longitude, stage, reason,
#: familiarity, further, checksum. The reason is that of a failure, or the damage of an image that was predicted
#: nevertheless.
Row = Sequence[Any]

_DAMAGED = "the saved result is damaged: name this image again to predict it again"


def source_identity(source: Source | Failure) -> tuple[str, int, int]:
    """Return name, size and time of change; 0 and 0 of a failure."""
    if isinstance(source, Failure):
        return source.path, 0, 0
    return source.name, source.size, _signed(source.modified)


def _signed(value: int) -> int:
    """The number as SQLite holds it, in 64 bits: a file may say that it is of the year 2400."""
    return (value + 2**63) % 2**64 - 2**63


def encode_values(result: Result) -> tuple[Any, ...]:
    """Return the columns of a result after the first three, as SQLite gives them back."""
    if isinstance(result, Failure):
        return None, None, None, 0, None, None, None, result.stage, _text(result.reason), None, None
    probabilities = np.ascontiguousarray(result.probabilities, "<f4").tobytes()
    exif = result.exif or ExifInfo()
    place = (None if value is None else float(value) for value in (exif.latitude, exif.longitude))
    shape = result.width, result.height, int(result.exif is not None)
    familiarity = None if result.familiarity is None else float(result.familiarity)
    damage = None if result.damage is None else _text(result.damage)
    return probabilities, *shape, exif.time, *place, None, damage, familiarity, result.further


def _text(line: str) -> str:
    return line.encode("utf-8", "backslashreplace").decode()


def checksum(row: Row) -> int:
    """Return the CRC-32 of all columns but the last; without the newer ones, where there is nothing in them."""
    name, size, modified, probabilities, width, height, has_exif, time_, latitude, longitude, *rest = row
    stage, reason, familiarity, further = rest
    text = f"{size} {modified} {width} {height} {has_exif} {time_} {latitude} {longitude} {stage} {reason}"
    text += "" if familiarity is None else f" {familiarity}"
    text += f" further {further}" if further else ""
    return zlib.crc32(b"%b|%b|%b" % (name, probabilities or b"", text.encode()))


def is_intact(row: Row) -> bool:
    """Return whether a row is what was written."""
    return bool(row[-1] == checksum(row[:-1]))


class Listed:
    """The results that this run has listed, in their order; known without another query if it made none itself.

    Attributes:
        predicted: predictions among them.
        failed: failures.
    """

    def __init__(self) -> None:
        self.predicted = self.failed = 0
        self._checksums = hashlib.sha256()

    def add(self, rows: Iterable[Row]) -> None:
        """Take the next rows."""
        rows = list(rows)
        predicted = sum(row[3] is not None for row in rows)
        self.predicted += predicted
        self.failed += len(rows) - predicted
        self.add_checksums(row[-1] for row in rows)

    def add_checksums(self, checksums: Iterable[int]) -> None:
        """Take the next rows' checksums alone, for the digest."""
        self._checksums.update("".join(f"{checksum}," for checksum in checksums).encode())

    def digest(self) -> bytes:
        """Return a digest of all rows in their order."""
        return self._checksums.digest()


def decode_result(row: Row) -> Result:
    """Return the result of a row; a failure if the row is damaged."""
    name, _, _, probabilities, width, height, has_exif, time_, latitude, longitude, *rest = row
    stage, reason, familiarity, further, _ = rest
    if not is_intact(row):
        return Failure(os.fsdecode(name), "read", _DAMAGED)
    if probabilities is None:
        return Failure(os.fsdecode(name), stage, reason)
    exif = ExifInfo(time_, latitude, longitude) if has_exif else None
    values = np.frombuffer(probabilities, "<f4")
    more = {"familiarity": familiarity, "damage": reason, "further": further or 0}
    return Prediction(os.fsdecode(name), values, width, height, exif, **more)
