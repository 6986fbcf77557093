"""Tables for people: an Excel workbook, and a CSV that Excel opens by a double click."""

from __future__ import annotations

import io
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mineral_batch.deliver.records import Delivery, Record, printable
from mineral_batch.errors import DataError
from mineral_batch.files import atomic_file, is_file, write_errors
from mineral_batch.minerals.table import Table
from mineral_batch.report.thumbnails import thumbnails
from mineral_batch.results.csv import decimal_comma, formula_safe_text
from mineral_batch.results.schema import SEPARATOR
from mineral_batch.system import pip_install

#: Rows that a sheet of Excel can have, with the header.
MOST_ROWS = 1_048_576
_LINKS = 65_000  # hyperlinks that a sheet can have
#: Rows with a thumbnail at most: a workbook is a ZIP file, which has at most 65,535 members without ZIP64, and memory
#: grows by 2.4 KB for each.
MOST_THUMBNAILS = 65_000
_COLUMNS = ("minerals", "evidence", "decided by", "decided", "model says", "best", "probability", "taken")
_PLACE = ("latitude", "longitude")
_MOST_IMAGES = 100  # whose names stand in a cell
_WIDTHS = {
    "image": 45,
    "specimen": 30,
    "images": 45,
    "minerals": 26,
    "model says": 26,
    "best": 16,
    "decided": 19,
    "taken": 19,
}


def _header(delivery: Delivery, *, has_places: bool) -> list[str]:
    first = ("specimen", "photographs", "images") if delivery.has_specimens else ("image",)
    return [*first, *_COLUMNS, *(_PLACE if has_places else ()), *delivery.inventory_columns, *delivery.labels]


def _row(delivery: Delivery, record: Record, *, has_places: bool) -> list[Any]:
    images = [len(record.images), _listed(record.images)] if delivery.has_specimens else []
    place = (record.place or (None, None)) if has_places else ()
    return [
        *(printable(record.path), *images, *_cells(record), *place),
        *record.inventory,
        *record.probabilities.values(),
    ]


def _listed(images: Sequence[str]) -> str:
    more = f"{SEPARATOR}and {len(images) - _MOST_IMAGES} more" if len(images) > _MOST_IMAGES else ""
    return SEPARATOR.join(map(printable, images[:_MOST_IMAGES])) + more


def _cells(record: Record) -> list[Any]:
    return [
        SEPARATOR.join(record.names),
        record.evidence,
        record.reviewer,
        record.time,
        SEPARATOR.join(record.machine),
        record.best,
        record.probabilities[record.best],
        record.captured,
    ]


def write_semicolons(delivery: Delivery, path: Path) -> None:
    """Write a CSV with semicolons, a byte order mark and Windows line ends; numbers with a comma.

    Excel opens it by a double click where the system's list separator is a semicolon, as in most of Europe.

    Raises:
        DataError: if it cannot be written.
    """
    with write_errors(path), atomic_file(path) as file:
        file.write(b"\xef\xbb\xbf")
        for cells in _all_rows(delivery):
            file.write((";".join(map(_quoted, cells)) + "\r\n").encode())


def _all_rows(delivery: Delivery) -> Iterator[Sequence[Any]]:
    yield _header(delivery, has_places=True)
    for record in delivery:
        yield _row(delivery, record, has_places=True)


def _quoted(cell: object) -> str:
    if isinstance(cell, float):
        return decimal_comma(f"{cell:.7g}")
    text = formula_safe_text("" if cell is None else str(cell))
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ';"\r\n') else text


def write_workbook(delivery: Delivery, path: Path, *, thumbnail: int = 0) -> None:
    """Write an Excel workbook: the images with filters, the minerals, and how it was made.

    Memory hardly grows with the rows: by 2.4 KB for each thumbnail, of which the first `MOST_THUMBNAILS` rows have one.

    Args:
        delivery: the records.
        path: of the workbook.
        thumbnail: longest side of the small images in it, pixels; 0 for none.

    Raises:
        DataError: if there are more images than a sheet has rows, XlsxWriter is missing, or the disk refuses.
    """
    if len(delivery) >= MOST_ROWS:
        raise DataError(f"{len(delivery):,} {delivery.what} are more than a sheet of Excel holds: use --as csv-excel")
    with (
        write_errors(path),
        atomic_file(path) as file,
        tempfile.TemporaryFile() as small,
        tempfile.TemporaryDirectory() as scratch,  # XlsxWriter's, which it does not remove if it fails
    ):
        # Rows and thumbnails go to temporary files at once; text stays text, whatever sign it begins with.
        options = {"constant_memory": True, "strings_to_formulas": False, "strings_to_urls": False, "tmpdir": scratch}
        with _closing_well(_xlsxwriter().Workbook(file, options)) as book:
            counts = _images_sheet(book, delivery, path.parent, _Thumbnails(small, thumbnail))
            _minerals_sheet(book, counts, delivery.table, delivery.what)
            _about_sheet(book, delivery)


@contextmanager
def _closing_well(book: Any) -> Iterator[Any]:
    """Write the workbook at the end; what the disk or the format refuses is an error in one line."""
    from xlsxwriter.exceptions import FileSizeError, XlsxFileError

    try:
        with book:
            yield book
    except FileSizeError:
        raise DataError("the workbook is larger than its format can be: use --as csv-excel, or no thumbnails") from None
    except XlsxFileError as error:
        raise OSError(str(error)) from error


def _xlsxwriter() -> Any:
    try:
        import xlsxwriter
    except ImportError:
        raise DataError(f"Excel needs XlsxWriter: {pip_install('deliver')}") from None
    return xlsxwriter


def _relative(file: Path, folder: Path) -> str:
    """The way from the workbook to an image, so that both can be moved together."""
    return os.path.relpath(file.resolve(), folder.resolve())


class _Packed(io.BytesIO):
    """A small image that waits in a file with others, which XlsxWriter takes for an image in memory.

    XlsxWriter asks for its bytes twice (`getvalue`): for its size, and when it writes the workbook.
    """

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        super().__init__()
        self._file, self._start, self._size = file, start, size

    def getvalue(self) -> bytes:
        self._file.seek(self._start)
        return self._file.read(self._size)


class _Thumbnails:
    """The thumbnails of a workbook, in one temporary file: a hundred thousand files would take minutes to remove.

    Args:
        file: open for writing and reading.
        size: longest side, pixels; 0 for none.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.size = size
        self._file = file
        self._places: dict[int, tuple[int, int]] = {}

    def make(self, delivery: Delivery) -> None:
        images = delivery.first_images[:MOST_THUMBNAILS] if self.size else []
        for row, content in thumbnails(images, delivery.base, self.size):
            self._places[row] = self._file.tell(), len(content)
            self._file.write(content)

    def find(self, row: int) -> _Packed | None:
        """The one of a record; None where its image cannot be read."""
        place = self._places.get(row)
        return None if place is None else _Packed(self._file, *place)


def _images_sheet(book: Any, delivery: Delivery, folder: Path, small: _Thumbnails) -> Counter[str]:
    sheet = book.add_worksheet(delivery.what.capitalize())
    has_places = delivery.results.has_places
    header = _header(delivery, has_places=has_places)
    bold, percent = book.add_format({"bold": True}), book.add_format({"num_format": "0.0%"})
    first = 1 if small.size else 0
    for column, name in enumerate(header, first):
        sheet.set_column(column, column, _WIDTHS.get(name, 12))
        sheet.write_string(0, column, name, bold)
    sheet.freeze_panes(1, first + 1)
    sheet.autofilter(0, first, max(len(delivery), 1), first + len(header) - 1)
    if small.size:
        sheet.set_column(0, 0, small.size / 7)
    small.make(delivery)
    counts: Counter[str] = Counter()
    for row, record in enumerate(delivery, 1):
        counts.update(record.minerals or ("(none)",))
        if (image := small.find(row - 1)) is not None:
            sheet.set_row_pixels(row, small.size + 4)
            sheet.insert_image(row, 0, "thumbnail.jpg", {"image_data": image, "x_offset": 2, "y_offset": 2})
        for column, cell in enumerate(_row(delivery, record, has_places=has_places), first):
            is_share = header[column - first] not in _PLACE
            _write(sheet, row, column, cell, percent if is_share else None)
        file = delivery.file(record)
        link = f"external:{_relative(file, folder)}"
        is_text = link == printable(link)  # a workbook is UTF-8: no other name can be in it
        if row <= _LINKS and is_text and is_file(file):
            sheet.write_url(row, first, link, string=printable(record.path)[:32_000])
    return counts


def _write(sheet: Any, row: int, column: int, cell: object, number: Any) -> None:
    if isinstance(cell, float):
        sheet.write_number(row, column, cell, number)
    elif isinstance(cell, int):
        sheet.write_number(row, column, cell)
    elif cell not in (None, ""):
        sheet.write_string(row, column, str(cell)[:32_000])


def _minerals_sheet(book: Any, counts: Mapping[str, int], table: Table, what: str) -> None:
    sheet = book.add_worksheet("Minerals")
    bold = book.add_format({"bold": True})
    widths = {"mineral": 18, what: 12, "formula": 40, "class": 36, "hazard": 80}
    for column, (name, width) in enumerate(widths.items()):
        sheet.set_column(column, column, width)
        sheet.write_string(0, column, name, bold)
    sheet.freeze_panes(1, 1)
    for row, name in enumerate(sorted(counts, key=lambda name: (-counts[name], name)), 1):
        sheet.write_string(row, 0, name)
        sheet.write_number(row, 1, counts[name])
        if mineral := table.get(name):
            for column, text in enumerate((mineral.formula, mineral.mineral_class, mineral.hazard), 2):
                sheet.write_string(row, column, text)


def _about_sheet(book: Any, delivery: Delivery) -> None:
    sheet = book.add_worksheet("About")
    manifest = delivery.results.manifest
    rule = "thresholds of the model" if delivery.least is None else f"probability of at least {delivery.least:g}"
    facts = {
        "model": delivery.model,
        "predicted": str(manifest.get("finished", "")),
        delivery.what: f"{len(delivery):,}",
        "decided by people": f"{len(delivery.decisions):,}",
        "the model's answers": rule,
        "evidence": "human: a person decided; machine: the model alone; unsure: a person could not tell",
    }
    sheet.set_column(0, 0, 22)
    sheet.set_column(1, 1, 90)
    for row, (name, text) in enumerate(facts.items()):
        sheet.write_string(row, 0, name)
        sheet.write_string(row, 1, text)
