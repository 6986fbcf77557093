"""S3 Inventory reports as inputs: the objects of a bucket without listing it.

A report is a `manifest.json` and the files that it names, CSV or Parquet, which S3 writes daily or weekly. It has the
size and ETag of every object, so fifty million are found without fifty thousand requests one after the other. Format:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote_plus

from mineral_batch.errors import DataError, one_line
from mineral_batch.storage.interface import Entry
from mineral_batch.storage.store import open_ranges, open_store
from mineral_batch.storage.urls import Url, parse
from mineral_batch.system import pip_install

MANIFEST = "manifest.json"
_BUCKET_ARN = "arn:aws:s3:::"
_NEEDED = ("bucket", "key", "size", "etag")
_ROWS = 10_000


def is_inventory(url: Url) -> bool:
    """Return whether a URL names the manifest of a report."""
    return not url.is_web and url.key.rpartition("/")[2] == MANIFEST


def inventory_objects(url: Url) -> Iterator[tuple[str, Entry]]:
    """Yield the bucket of each object of a report and what the report says of it, in the order of the report.

    Of versions the latest is taken; what is deleted is left out.

    Args:
        url: of the manifest.

    Raises:
        DataError: if the report is damaged, lacks a column, is in another format (ORC), or cannot be read. Rows that
            are silently missing would be photographs that are.
    """
    report = _Report.read(url)
    for file in report.files:
        where = parse(f"{report.root}/{file}")
        try:
            for row in report.rows(where):
                if _is_there(row):
                    yield row["bucket"], _entry(row)
        except DataError:
            raise
        # gzip, csv, zlib and pyarrow each have their own.
        except Exception as error:
            raise DataError(f"the inventory {where} cannot be read: {one_line(error)}") from None


@dataclass(frozen=True)
class _Report:
    """A manifest.

    Attributes:
        root: of the bucket with the files.
        files: their keys.
        columns: of CSV files, in order; empty for Parquet.
    """

    root: str
    files: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def read(cls, url: Url) -> _Report:
        content = open_store(url).get(url.key)
        try:
            record = json.loads(content)
            kind, bucket = record["fileFormat"], record["destinationBucket"].removeprefix(_BUCKET_ARN)
            files = tuple(file["key"] for file in record["files"])
            columns = tuple(map(_column, record["fileSchema"].split(","))) if kind == "CSV" else ()
        except (ValueError, TypeError, KeyError, AttributeError):
            raise DataError(
                f"{url} is not a manifest of an S3 Inventory report: name photographs, prefixes, or such a manifest"
            ) from None
        if kind not in ("CSV", "Parquet"):
            raise DataError(f"{url} is an inventory in the format {kind}: only CSV and Parquet are read")
        _require_columns(columns or _NEEDED, url)
        return cls(f"s3://{bucket}", files, columns)

    def rows(self, url: Url) -> Iterator[Mapping[str, Any]]:
        return _csv_rows(url, self.columns) if self.columns else _parquet_rows(url)


def _csv_rows(url: Url, columns: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    with open_store(url).open(url.key) as file, gzip.GzipFile(fileobj=file) as unpacked:
        for fields in csv.reader(io.TextIOWrapper(unpacked, "utf-8", newline="")):
            row = dict(zip(columns, fields, strict=True))
            yield row | {"key": unquote_plus(row["key"])}


def _parquet_rows(url: Url) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"{url} needs an optional package: {pip_install('parquet')}") from None
    with open_ranges(url) as file, pq.ParquetFile(file) as opened:
        names = {_column(name): name for name in opened.schema_arrow.names}
        _require_columns(tuple(names), url)
        wanted = {short: name for short, name in names.items() if short in (*_NEEDED, *_OPTIONAL)}
        for batch in opened.iter_batches(_ROWS, columns=list(wanted.values())):
            for row in batch.to_pylist():
                yield {short: row[name] for short, name in wanted.items()}


_OPTIONAL = ("lastmodifieddate", "islatest", "isdeletemarker")


def _column(name: str) -> str:
    """One name for a column of CSV (`LastModifiedDate`) and Parquet (`last_modified_date`)."""
    return name.strip().replace("_", "").lower()


def _require_columns(columns: tuple[str, ...], url: Url) -> None:
    missing = [name for name in _NEEDED if name not in columns]
    if missing:
        raise DataError(
            f"the inventory {url} lacks {' and '.join(missing)}: choose Size and ETag among the report's fields"
        )


def _is_there(row: Mapping[str, Any]) -> bool:
    return str(row.get("islatest", "true")).lower() == "true" and str(row.get("isdeletemarker", "")).lower() != "true"


def _entry(row: Mapping[str, Any]) -> Entry:
    return Entry(row["key"], int(row["size"]), _nanoseconds(row.get("lastmodifieddate")), row["etag"] or "")


def _nanoseconds(time: str | datetime | None) -> int:
    if not time:
        return 0
    moment = datetime.fromisoformat(time) if isinstance(time, str) else time
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1) * 1000
