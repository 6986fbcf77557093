"""Parts and lists of images, made and read in memory: a piece is a few hundred KB.

Both are JSON lines, compressed with gzip, whose CRC-32 covers every byte: a header, then an array per row. `zcat` shows
them. A part has the columns of the journal of a local run (`mineral_batch.results.journal_rows`), so every row carries
the same checksum, and its header says which worker made it, with what.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mineral_batch.errors import DataError
from mineral_batch.results.journal_rows import Row, checksum, decode_result, encode_values, is_intact
from mineral_batch.types import Result

# Of the form of a part and its columns.
_VERSION = 2
_NAME, _PROBABILITIES = 0, 3
# Probabilities hardly shrink, names do at any level.
_GZIP_LEVEL = 1


class PlannedImage(NamedTuple):
    """An image in the plan.

    Attributes:
        name: as `mineral_batch.images.discover` names it.
        size: bytes.
        modified: see `mineral_batch.types.Source`.
        stage: of what could not be read when the plan was made; else None.
        reason: likewise.
    """

    name: str
    size: int
    modified: int
    stage: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Part:
    """The results of a piece.

    Attributes:
        results: in the order of the plan.
        certificate: who made it: fingerprint, engine, device, versions, seconds of each stage.
    """

    results: Sequence[Result]
    certificate: Mapping[str, Any]


def encode_images(images: Sequence[PlannedImage]) -> bytes:
    """Return the list of a piece's images."""
    return _encode({"version": _VERSION}, images)


def decode_images(content: bytes, where: str) -> list[PlannedImage]:
    """Return the images of a piece.

    Raises:
        DataError: if the list is damaged.
    """
    _, rows = _decode(content, where)
    try:
        return [PlannedImage(*row) for row in rows]
    except TypeError:
        raise _damaged(where) from None


def encode_part(images: Sequence[PlannedImage], results: Sequence[Result], certificate: Mapping[str, Any]) -> bytes:
    """Return the results of a piece's images."""
    rows = []
    for image, result in zip(images, results, strict=True):
        row = (os.fsencode(image.name), image.size, image.modified, *encode_values(result))
        rows.append(_to_text((*row, checksum(row))))
    return _encode({"version": _VERSION, "certificate": certificate}, rows)


def decode_part(content: bytes, where: str) -> Part:
    """Return the results of a piece.

    Raises:
        DataError: if a single byte of a row is not what was written, or another release wrote it.
    """
    header, texts = _decode(content, where)
    try:
        rows = [_from_text(row) for row in texts]
        certificate = header["certificate"]
        if not all(is_intact(row) for row in rows):
            raise _damaged(where)
    except (KeyError, ValueError, TypeError, IndexError):  # columns of another release
        raise _damaged(where) from None
    return Part([decode_result(row) for row in rows], certificate)


def _to_text(row: Row) -> list[Any]:
    """A row of the journal with text in place of bytes; a name that is not UTF-8 keeps them as lone surrogates."""
    values = list(row)
    values[_NAME] = os.fsdecode(values[_NAME])
    if values[_PROBABILITIES] is not None:
        values[_PROBABILITIES] = base64.b64encode(values[_PROBABILITIES]).decode()
    return values


def _from_text(values: list[Any]) -> Row:
    values[_NAME] = os.fsencode(values[_NAME])
    if values[_PROBABILITIES] is not None:
        values[_PROBABILITIES] = base64.b64decode(values[_PROBABILITIES])
    return values


def _encode(header: Mapping[str, Any], rows: Iterable[Sequence[Any]]) -> bytes:
    lines = "".join(f"{json.dumps(line)}\n" for line in (header, *rows))
    return gzip.compress(lines.encode("ascii"), _GZIP_LEVEL, mtime=0)  # the same rows are the same bytes


def _decode(content: bytes, where: str) -> tuple[dict[str, Any], list[list[Any]]]:
    try:
        header, *rows = map(json.loads, gzip.decompress(content).splitlines())
        is_ours = header["version"] == _VERSION
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError):
        is_ours = False
    if not is_ours:
        raise _damaged(where)
    return header, rows


def _damaged(where: str) -> DataError:
    return DataError(f"{where} is damaged: delete it and rerun the command that made it, then merge again")
