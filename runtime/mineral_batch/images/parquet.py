"""Images in a column of a Parquet file, as data sets on Hugging Face have them; read a few rows at a time."""

from __future__ import annotations

import tempfile
import zlib
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mineral_batch.errors import DataError, ImageError, one_line
from mineral_batch.images.limits import check_bytes
from mineral_batch.storage.errors import StoreError
from mineral_batch.storage.store import open_ranges, open_store
from mineral_batch.storage.urls import Url
from mineral_batch.system import pip_install
from mineral_batch.types import Failure, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

SUFFIXES = (".parquet", ".pq")
# Rows that are in memory at once.
_ROWS = 32
# What a column of bytes is called where several might be images.
_NAMES = ("image", "img", "photo", "picture", "jpg", "jpeg", "png", "bytes", "content", "image_bytes")


def is_parquet(name: str) -> bool:
    """Return whether a file that is named directly is opened as a table of images."""
    return name.lower().endswith(SUFFIXES)


def parquet_rows(file: Path | Url, name: str, version: int = 0) -> Iterator[Source | Failure]:
    """Find the images in a Parquet file; a damaged one is a failure behind the rows that it still gave.

    The column holds `struct<bytes, path>`, as the library `datasets` writes it, or bytes; where several do, the one
    named `image` or so is taken, else the first. A row's name is `FILE/ROW`, and the name in `path` behind it.

    Args:
        file: on disk or at a URL, of which only the column with the images is read.
        name: of the file, for the rows.
        version: not needed: a row's checksum tells whether it changed.

    Raises:
        DataError: if pyarrow is not installed.
    """
    del version
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"{name} needs an optional package: {pip_install('parquet')}") from None
    try:
        with ExitStack() as stack:
            opened = stack.enter_context(pq.ParquetFile(_opened(file, stack)))
            column = _image_column(opened.schema_arrow)
            if column is None:
                yield Failure(name, "read", f"no column of images; its columns: {', '.join(opened.schema_arrow.names)}")
                return
            yield from _rows(opened, column, name)
    except (OSError, StoreError) as error:
        yield Failure(name, "read", one_line(error))
    # pyarrow raises ArrowInvalid, ArrowException and more for damaged files.
    except Exception as error:
        yield Failure(name, "read", f"the Parquet file is damaged: {one_line(error)}")


def _rows(opened: Any, column: str, name: str) -> Iterator[Source | Failure]:
    row = 0
    for group in range(opened.num_row_groups):
        first = row
        try:
            for batch in opened.iter_batches(_ROWS, row_groups=[group], columns=[column]):
                for value in batch.column(0):
                    yield _row(value.as_py(), f"{name}/{row}")
                    row += 1
        except Exception as error:  # one damaged group: the others may be whole
            row = first + opened.metadata.row_group(group).num_rows
            yield Failure(f"{name}/{first}-{row - 1}", "read", f"a damaged row group: {one_line(error)}")


def _row(value: Any, name: str) -> Source | Failure:
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if path:
        name = f"{name}/{str(path).replace(chr(92), '/').rpartition('/')[2]}"
    if content is None:
        return Failure(name, "read", "the row has no image")
    try:
        check_bytes(len(content))
    except ImageError as error:
        return Failure(name, "read", one_line(error))
    return Source(name, len(content), zlib.crc32(content), partial(bytes, content))


def _image_column(schema: Any) -> str | None:
    import pyarrow as pa

    def holds_images(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds_images(kind.field("bytes").type)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    columns = [one.name for one in schema if holds_images(one.type)]
    structs = [name for name in columns if pa.types.is_struct(schema.field(name).type)]
    known = [name for name in columns if name.lower() in _NAMES]
    return next(iter([*structs, *known, *columns]), None)


def _opened(file: Path | Url, stack: ExitStack) -> Any:
    """A file that can be entered anywhere: on disk, in a bucket by ranges, of a web server as a temporary copy."""
    if isinstance(file, Path):
        return stack.enter_context(file.open("rb"))
    if not file.is_web:
        return stack.enter_context(open_ranges(file))
    copy: BinaryIO = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    with open_store(file).open(file.key) as body:
        while block := body.read(2**20):
            copy.write(block)
    copy.seek(0)
    return copy
