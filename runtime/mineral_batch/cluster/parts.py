"""Parts and lists of images as Parquet, made and read in memory: a piece is a few hundred KB.

A part has the columns of the journal of a local run (`mineral_batch.results.journal_rows`), so every row carries the
same checksum, and its metadata say which worker made it, with what.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mineral_batch.errors import DataError
from mineral_batch.results.journal_rows import checksum, decode_result, encode_values, is_intact
from mineral_batch.results.parquet import import_pyarrow
from mineral_batch.types import Result

_COLUMNS_BEFORE_FURTHER = 14
_CERTIFICATE = b"mineral_batch.certificate"


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
    """Return the list of a piece's images as Parquet."""
    arrow, _ = import_pyarrow()
    rows = [(os.fsencode(image.name), *image[1:]) for image in images]
    kinds = [arrow.binary(), arrow.int64(), arrow.int64(), arrow.string(), arrow.string()]
    return _encode(rows, dict(zip(PlannedImage._fields, kinds, strict=True)), {})


def decode_images(content: bytes, where: str) -> list[PlannedImage]:
    """Return the images of a piece.

    Raises:
        DataError: if the list is damaged.
    """
    rows, _ = _decode(content, where)
    return [PlannedImage(os.fsdecode(name), *rest) for name, *rest in rows]


def encode_part(images: Sequence[PlannedImage], results: Sequence[Result], certificate: Mapping[str, Any]) -> bytes:
    """Return the results of a piece's images as Parquet."""
    arrow, _ = import_pyarrow()
    rows = []
    for image, result in zip(images, results, strict=True):
        row = (os.fsencode(image.name), image.size, image.modified, *encode_values(result))
        rows.append((*row, checksum(row)))
    text, real, integer = arrow.string(), arrow.float64(), arrow.int64()
    kinds = {
        "name": arrow.binary(),
        "size": integer,
        "modified": integer,
        "probabilities": arrow.binary(),
        "width": integer,
        "height": integer,
        "has_capture": integer,
        "time": text,
        "latitude": real,
        "longitude": real,
        "stage": text,
        "reason": text,
        "familiarity": real,
        "further": integer,
        "checksum": integer,
    }
    return _encode(rows, kinds, {_CERTIFICATE: json.dumps(certificate).encode()})


def decode_part(content: bytes, where: str) -> Part:
    """Return the results of a piece.

    Raises:
        DataError: if a single byte of a row is not what was written.
    """
    rows, metadata = _decode(content, where)
    if rows and len(rows[0]) == _COLUMNS_BEFORE_FURTHER:  # made by an earlier release
        rows = [(*row[:-1], None, row[-1]) for row in rows]
    try:
        intact = all(is_intact(row) for row in rows)
    except (ValueError, TypeError, IndexError):  # columns of another release
        intact = False
    if not intact:
        raise _damaged(where)
    try:
        certificate = json.loads(metadata[_CERTIFICATE])
    except (KeyError, ValueError):
        raise _damaged(where) from None
    return Part([decode_result(row) for row in rows], certificate)


def _encode(rows: Sequence[Sequence[Any]], kinds: Mapping[str, Any], metadata: Mapping[bytes, bytes]) -> bytes:
    arrow, parquet = import_pyarrow()
    schema = arrow.schema(list(kinds.items()), metadata=dict(metadata))
    columns = zip(*rows, strict=True) if rows else [()] * len(kinds)
    arrays = [arrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    buffer = io.BytesIO()
    table = arrow.Table.from_arrays(arrays, schema=schema)
    parquet.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def _decode(content: bytes, where: str) -> tuple[list[tuple[Any, ...]], Mapping[bytes, bytes]]:
    arrow, parquet = import_pyarrow()
    try:
        # One thread: a part has a few hundred KB, and each of Arrow's threads would keep memory of its own.
        table = parquet.read_table(io.BytesIO(content), page_checksum_verification=True, use_threads=False)
        return list(zip(*(column.to_pylist() for column in table.columns), strict=True)), table.schema.metadata or {}
    except (arrow.ArrowException, OSError, ValueError):
        raise _damaged(where) from None


def _damaged(where: str) -> DataError:
    return DataError(f"{where} is damaged: delete it and rerun the command that made it, then merge again")
