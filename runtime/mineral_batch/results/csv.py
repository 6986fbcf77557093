"""The one CSV reader and writer of the four packages.

Reading takes the tables that `predict` writes and those that people keep in a spreadsheet: a byte order mark, a
semicolon or a duplicate column means the same everywhere. Writing is UTF-8 in which names of files that are not UTF-8
keep their bytes, with line feeds, and quotes what Python's own writer leaves ambiguous (a lone carriage return).
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError, harmless, plain_reason
from mineral_batch.files import atomic_file, write_errors
from mineral_batch.images.names import FORMULA_SIGNS
from mineral_batch.words import counted

if TYPE_CHECKING:
    from _csv import Reader
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import BinaryIO, TextIO

_DELIMITERS = (",", ";", "\t")
_LISTED = 8
_SHOWN = 400  # characters of one name or cell
_QUOTES = "; a cell with a separator in it needs quotes"
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+(e[+-]?\d+)?")
_NEEDS_QUOTES = re.compile(r'["\r\n]')


@dataclass(frozen=True)
class CsvTable:
    """An open CSV file behind its header; iterating gives its rows once.

    Attributes:
        path: the file.
        header: names of the columns, without the blanks around them.
    """

    path: Path
    header: tuple[str, ...]
    _reader: Reader
    _skipped: int = 0

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        """(line, fields) of every row that is not empty; `line` is the number of its last line in the file.

        Raises:
            DataError: if rows have more or fewer fields than the header, naming the first of them.
        """
        records = self._records()
        for line, fields in records:
            if len(fields) != len(self.header):
                raise DataError(self._width_faults(line, fields, records))
            yield line, fields

    def rows(self, faults: list[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield the rows as iterating does, and list those of another width in `faults` instead of raising."""
        for line, fields in self._records():
            if len(fields) == len(self.header):
                yield line, fields
            else:
                faults.append(self._width_fault(line, fields) + _QUOTES)

    def _width_faults(self, line: int, fields: Sequence[str], rest: Iterable[tuple[int, Sequence[str]]]) -> str:
        faults = [self._width_fault(line, fields)]
        with suppress(csv.Error, UnicodeError):  # what ends the reading further on is the smaller trouble
            for place, cells in rest:
                if len(cells) != len(self.header):
                    faults.append(self._width_fault(place, cells))
        more = f" and {len(faults) - _LISTED:,} more" if len(faults) > _LISTED else ""
        return f"{shown(str(self.path))} {', '.join(faults[:_LISTED])}{more}{_QUOTES}"

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        return ((self._reader.line_num + self._skipped, fields) for fields in self._reader if fields)

    def _width_fault(self, line: int, fields: Sequence[str]) -> str:
        return f"line {line}: {len(fields)} fields where the header has {len(self.header)}"

    def dicts(self) -> Iterator[dict[str, str]]:
        """Yield each row as column -> cell; errors as in iterating."""
        for _, cells in self:
            yield dict(zip(self.header, cells, strict=True))

    def index(self, column: str) -> int:
        """The place of a column.

        Raises:
            DataError: if there is none of that name.
        """
        if column not in self.header:
            raise DataError(
                f"{self.path} has no column {shown(column)}; its first line has {listed(self.header) or 'nothing'}"
            )
        return self.header.index(column)


@contextmanager
def open_csv(
    path: str | Path,
    required: Sequence[str] = (),
    *,
    sniff: Sequence[str] | None = None,
    synonyms: Mapping[str, str] | None = None,
    errors: str = "surrogateescape",
    missing: str = "",
) -> Iterator[CsvTable]:
    """Open a CSV file with a header.

    The text is UTF-8, with or without a byte order mark, or UTF-16 with one (Excel's "Unicode Text").

    Args:
        path: the file.
        required: columns that must be there.
        sniff: columns that tell the delimiter: of `,`, `;` and a tab, the one that finds the most of them in the first
            line; Excel's line `sep=;` before it is skipped. None takes `,`.
        synonyms: lower-case header -> the column it stands for where that is not there itself; a column that stands
            for itself is found in any case.
        errors: what becomes of bytes that are not UTF-8: by `surrogateescape` a file name in another encoding keeps
            its bytes, as `predict` writes them; `strict` refuses them.
        missing: the message where there is no such file.

    Raises:
        DataError: in one line, if the file is missing, is no CSV, or lacks a column, or has one twice.
    """
    path = Path(path)
    try:
        with path.open("rb") as binary, _decoded(binary, errors) as file:
            skipped = 0 if sniff is None else _skip_separator_line(file)
            delimiter = "," if sniff is None else _delimiter(file, sniff, synonyms or {})
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            written = [name.strip() for name in next(reader, [])]
            header = _renamed(written, synonyms or {})
            _check_header(path, header, required, written)
            yield CsvTable(path, tuple(header), reader, skipped)
    except FileNotFoundError:
        raise DataError(missing or f"there is no file {shown(str(path))}") from None
    except (OSError, csv.Error, UnicodeError) as error:
        raise DataError(
            f"cannot read {shown(str(path))}: {plain_reason(error)}; it must be a CSV file in UTF-8"
        ) from None


def csv_records(path: str | Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of every record, the header included, of whatever width: for checking a file.

    Args:
        path: the file.
        delimiter: between cells; a file with semicolons begins with a byte order mark, as Excel's do.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        encoding = "utf-8" if delimiter == "," else "utf-8-sig"
        with Path(path).open(encoding=encoding, errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for cells in reader:
                yield reader.line_num, cells
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {plain_reason(error)}") from None


class CsvWriter:
    """Writes records to a binary file.

    Args:
        file: open for writing bytes.
        header: the column names, written at once.
    """

    def __init__(self, file: BinaryIO, header: Sequence[str]) -> None:
        self._file = file
        self.write(header)

    def write(self, cells: Iterable[object]) -> None:
        """Append one record; None is an empty cell."""
        self._file.write(encode(csv_line(cells) + "\n"))


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file atomically.

    Raises:
        DataError: if it cannot be written; a file that was there is untouched.
    """
    with write_errors(path), atomic_file(path) as file:
        writer = CsvWriter(file, header)
        for row in rows:
            writer.write(row)


def csv_line(cells: Iterable[object]) -> str:
    r"""Return one record without its line feed.

    Python's csv module leaves a lone carriage return unquoted when it does not end lines, and its own reader then
    takes it for the end of a line.

    >>> csv_line(["a\rb", 1, None])
    '"a\rb","1",""'
    """
    row = ["" if cell is None else str(cell) for cell in cells]
    plain = ",".join(row)
    if len(row) > 1 and plain.count(",") == len(row) - 1 and not _NEEDS_QUOTES.search(plain):
        return plain
    has_return = "\r" in plain
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\n", quoting=csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL).writerow(row)
    return line.getvalue()[:-1]


def decimal_comma(number: str) -> str:
    """Return a number as a spreadsheet reads it where semicolons separate cells: of 0.995 it would make 995."""
    return number.replace(".", ",")


def decimal_point(cell: str) -> str:
    """Undo `decimal_comma`; a cell that is no such number stays as it is."""
    return cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell


def formula_safe_text(text: str) -> str:
    """Return free text with an apostrophe in front where a spreadsheet would run it as a formula.

    Paths are made safe where images are found (`mineral_batch.images.names.formula_safe`): all tables name them alike.
    """
    return f"'{text}" if text[:1] in FORMULA_SIGNS else text


def encode(text: str) -> bytes:
    """Return UTF-8 in which names of files that are not UTF-8 keep their bytes."""
    return text.encode("utf-8", "surrogateescape")


def require_distinct(path: str | Path, places: Sequence[tuple[str, int]]) -> None:
    """Check that no name comes twice.

    Args:
        path: of the table, for the message.
        places: (name, line) of every row.

    Raises:
        DataError: naming both lines.
    """
    seen: dict[str, int] = {}
    for name, line in places:
        first = seen.setdefault(name, line)
        if first != line:
            raise DataError(f"{path} names {shown(name)} twice, in lines {first} and {line}: keep one of them")


def describe_fields(found: int, expected: int) -> str:
    """`1 field instead of 43`."""
    return f"{counted(found, 'field')} instead of {expected}"


def listed(names: Sequence[str], limit: int = _LISTED) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shown(name) for name in names[:limit]) + more


def shown(text: str) -> str:
    """A name or a cell as a message shows it: in one line, without what a terminal would obey, not endlessly long."""
    if len(text) > _SHOWN:
        text = f"{text[: _SHOWN // 2]}…{text[-_SHOWN // 2 :]}"
    return harmless(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")).replace("\n", "\\n")


def _decoded(binary: io.BufferedReader, errors: str) -> TextIO:
    mark = binary.peek(3)[:3]
    if mark.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return io.TextIOWrapper(binary, encoding="utf-16", newline="")
    return io.TextIOWrapper(binary, encoding="utf-8-sig", errors=errors, newline="")


def _skip_separator_line(file: TextIO) -> int:
    """How many lines were skipped: 1 for Excel's `sep=;`, else 0."""
    start = file.tell()
    if file.readline().strip().casefold().startswith("sep="):
        return 1
    file.seek(start)
    return 0


def _delimiter(file: TextIO, columns: Sequence[str], synonyms: Mapping[str, str]) -> str:
    """The delimiter that finds the most of these columns in the first line, or else the most columns."""
    start = file.tell()
    line = file.readline()
    file.seek(start)

    def score(delimiter: str) -> tuple[int, int]:
        header = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
        return len({*columns} & {*_renamed(header, synonyms)}), len(header)

    return max(_DELIMITERS, key=score)


def _renamed(header: Sequence[str], synonyms: Mapping[str, str]) -> list[str]:
    """The header with synonyms as the column they stand for; the column's own name comes first, then the first one."""
    names = list(header)
    for is_own in (True, False):
        for place, name in enumerate(header):
            column = synonyms.get(name.casefold())
            if column and column not in names and (name.casefold() == column) == is_own:
                names[place] = column
    return names


def _check_header(path: Path, header: Sequence[str], required: Sequence[str], written: Sequence[str]) -> None:
    present = set(header)
    absent = [name for name in required if name not in present]
    if absent:
        raise DataError(
            f"{shown(str(path))} has no column {listed(absent)}; its first line has {listed(written) or 'nothing'}"
        )
    duplicates = repeated(header)
    if duplicates:
        raise DataError(f"{shown(str(path))} has duplicate column names: {listed(duplicates)}")


def repeated(names: Iterable[str]) -> list[str]:
    """Find the names that come more than once, sorted; in linear time, as there are models with 20,000 labels."""
    return sorted(name for name, count in Counter(names).items() if count > 1)
