"""Images in a column of a Parquet file, as data sets on Hugging Face have them; read a few rows at a time."""

from __future__ import annotations

import tempfile
import zlib
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mineral_batch.errors import DataError, ImageError, one_line
from mineral_batch.images.formats import may_be_image
from mineral_batch.images.limits import check_bytes
from mineral_batch.storage.errors import StoreError
from mineral_batch.storage.store import open_ranges, open_store
from mineral_batch.storage.urls import Url
from mineral_batch.system import available_memory, pip_install
from mineral_batch.types import Failure, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

SUFFIXES = (".parquet", ".pq")
# Rows that are in memory at once, and the bytes that they should not exceed.
_ROWS, _BYTES = 32, 64 * 2**20
# A column of a row group is read in pieces of so many bytes, and a page of it is held so many times.
_BUFFER, _COPIES = 8 * 2**20, 3
# What a column of bytes is called where several might be images.
_NAMES = ("image", "img", "photo", "picture", "jpg", "jpeg", "png", "bytes", "content", "image_bytes")


def is_parquet(name: str) -> bool:
    """Return whether a file that is named directly is opened as a table of images."""
    return name.lower().endswith(SUFFIXES)


def parquet_rows(file: Path | Url, name: str, version: int = 0) -> Iterator[Source | Failure]:
    """Find the images in a Parquet file; a damaged one is a failure behind the rows that it still gave.

    A column holds `struct<bytes, path>`, as the library `datasets` writes it, or bytes, or lists of these. All columns
    of structs are read; where there are none, those of bytes that are called `image` or so; else those whose first
    value begins as an image does. A row's name is `FILE/ROW`, then the column if several are read, then the place in a
    list, then the name in `path`.

    Args:
        file: on disk or at a URL, of which only the columns with images are read.
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
            opened = stack.enter_context(pq.ParquetFile(_opened(file, stack), buffer_size=_BUFFER))
            columns = _image_columns(opened)
            if not columns:
                names = ", ".join(opened.schema_arrow.names)
                yield Failure(
                    name, "read", f"no column of images; its columns: {names} (if one names files, use --list)"
                )
                return
            yield from _rows(opened, columns, name)
    except (OSError, StoreError) as error:
        yield Failure(name, "read", one_line(error))
    # pyarrow raises ArrowInvalid, ArrowException and more for damaged files.
    except Exception as error:
        yield Failure(name, "read", f"the Parquet file is damaged: {one_line(error)}")


def _rows(opened: Any, columns: list[str], name: str) -> Iterator[Source | Failure]:
    row = 0
    for group in range(opened.num_row_groups):
        first, size = row, _size(opened, group, columns)
        try:
            _require_memory(size)
            rows = opened.metadata.row_group(group).num_rows
            at_once = max(1, min(_ROWS, _BYTES * rows // max(1, size)))
            for batch in opened.iter_batches(at_once, row_groups=[group], columns=columns):
                for values in zip(*(batch.column(column) for column in columns), strict=True):
                    for column, value in zip(columns, values, strict=True):
                        yield from _row(value.as_py(), f"{name}/{row}" + f"/{column}" * (len(columns) > 1))
                    row += 1
        except Exception as error:  # one damaged group: the others may be whole
            row = first + opened.metadata.row_group(group).num_rows
            reason = str(error) if isinstance(error, ImageError) else f"a damaged row group: {one_line(error)}"
            yield Failure(f"{name}/{first}-{row - 1}", "read", reason)


def _size(opened: Any, group: int, columns: list[str]) -> int:
    """Bytes of the columns of a row group, unpacked."""
    facts = opened.metadata.row_group(group)
    chunks = (facts.column(index) for index in range(facts.num_columns))
    return sum(int(chunk.total_uncompressed_size) for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)


def _require_memory(size: int) -> None:
    """Refuse a row group that does not fit: its writer may have put all of it into one page, which is unpacked whole.

    Raises:
        ImageError: if it takes more than is left.
    """
    available = available_memory()
    if available is not None and _COPIES * size > available:
        raise ImageError(
            f"the row group takes {size / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB of memory are left: rewrite "
            f"the table with smaller row groups (row_group_size)"
        )


def _row(value: Any, name: str) -> Iterator[Source | Failure]:
    if isinstance(value, list):
        for index, one in enumerate(value):
            yield _image(one, f"{name}/{index}")
    else:
        yield _image(value, name)


def _image(value: Any, name: str) -> Source | Failure:
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if path:
        name = f"{name}/{str(path).replace(chr(92), '/').rpartition('/')[2]}"
    if content is None and path:
        return Failure(name, "read", "the row names a file instead of holding an image: list the files with --list")
    if content is None:
        return Failure(name, "read", "the row has no image")
    try:
        check_bytes(len(content))
    except ImageError as error:
        return Failure(name, "read", one_line(error))
    return Source(name, len(content), zlib.crc32(content), partial(bytes, content))


def _image_columns(opened: Any) -> list[str]:
    columns = {field.name: _kind(field.type) for field in opened.schema_arrow}
    structs = [name for name, kind in columns.items() if kind == "struct"]
    binary = [name for name, kind in columns.items() if kind == "bytes"]
    known = [name for name in binary if name.lower() in _NAMES]
    if structs or known or len(binary) < 2:
        return structs or known or binary
    firsts = next(opened.iter_batches(1, columns=binary), None)
    return [name for name in binary if firsts is not None and _begins_as_image(firsts.column(name)[0].as_py())]


def _begins_as_image(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, bytes) and may_be_image(first[:4096], "")


def _kind(kind: Any) -> str:
    """`struct` of a type that holds images with their names, `bytes` of one that may hold images, else nothing."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return "struct" if index >= 0 and _kind(kind.field(index).type) == "bytes" else ""
    return "bytes" if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else ""


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
