"""Several images of one specimen as one answer: specimens.csv beside the table of images.

A rule names the specimen of an image from its path: its folder, a pattern in its file name, or a table. An image that
the rule says nothing about is a specimen of its own, under its path.

The probability that a specimen shows a mineral is one less the geometric mean of the probabilities that its images do
not (`combined`): a noisy-or in which n images count as one, so that a photograph that is there twice changes nothing.
benchmarks/README.md compares it with the largest probability, the means of probabilities and of logits, and the plain
noisy-or, by log loss on real specimens and on synthetic views.
"""

from __future__ import annotations

import posixpath
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from mineral_batch.errors import DataError, OptionError
from mineral_batch.minerals.levels import Levels
from mineral_batch.model.contract import ModelContract
from mineral_batch.results.csv import CsvWriter, csv_line, encode, formula_safe_text, open_csv
from mineral_batch.results.rows import TableRow, best_columns
from mineral_batch.results.schema import ANSWER, BEST, SEPARATOR, SPECIMEN_COLUMNS, SPECIMEN_EXTRA
from mineral_batch.types import Failure

Floats = NDArray[np.float64]
#: The specimen of the image at a path; None where the rule does not say.
Rule = Callable[[str], str | None]

FOLDER, CATALOG, REGEX = "folder", "catalog", "regex="
#: What `--specimen` takes, for messages.
RULES = f"{FOLDER}, {CATALOG}, {REGEX}PATTERN or a CSV file (path,specimen)"

# X-90175_1, X-90175 (2), X-90175_front, X-90175 back, 1905.12a: a number of a catalog, then which view it is. Up to
# three digits are a view; IMG_20240517_140322 is a time, and 2024-05-17 a day.
_CATALOG = re.compile(
    r"(?!(?:19|20)\d\d-\d\d-\d\d)(?P<specimen>(?:[a-z]{1,8}[ ._-]?)*\d[\d.,-]*\d)"
    r"(?:[a-z]|_\d{1,3}|[ _-][a-z]{1,12}\d{0,3}| ?\(\d{1,3}\))?",
    re.IGNORECASE,
)
# What cameras and telephones call their photographs: a running number, not that of a specimen.
_CAMERA = re.compile(r"(?:_?img|_?dsc|_mg|dsc[fn]|pxl|gopr|dji|imgp|cimg)[_ -]?\d{3,}.*|p1\d{6}", re.IGNORECASE)
_SYNONYMS = {
    **dict.fromkeys(("file", "filename", "file name", "image", "photo"), "path"),
    **dict.fromkeys(("catalogue number", "catalog number", "catalognumber", "inventory number"), "specimen"),
}


def specimen_rule(text: str) -> Rule:
    """Read a rule as `--specimen` takes it.

    Args:
        text: `folder`; `catalog`, numbers of a catalog in file names (X-90175_1.jpg); `regex=PATTERN`, searched in
            the path, whose group `specimen`, else its first group, else all of it, is the name; or a CSV file.

    Raises:
        OptionError: if the pattern is not a regular expression.
        DataError: if the file cannot be read, or names an image twice.
    """
    if text == FOLDER:
        return lambda path: posixpath.dirname(path) or None
    if text in (CATALOG, "catalogue"):
        return _catalog_number
    return _searched(text.removeprefix(REGEX)) if text.startswith(REGEX) else _listed(Path(text))


def _catalog_number(path: str) -> str | None:
    name = posixpath.splitext(posixpath.basename(path))[0]
    found = None if _CAMERA.fullmatch(name) else _CATALOG.fullmatch(name)
    return found["specimen"] if found else None


def _searched(pattern: str) -> Rule:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise OptionError(f"--specimen {REGEX}{pattern} is not a regular expression: {error}") from None
    group = "specimen" if "specimen" in compiled.groupindex else min(compiled.groups, 1)

    def rule(path: str) -> str | None:
        found = compiled.search(path)
        return (found[group] or None) if found else None

    return rule


def _listed(path: Path) -> Rule:
    """The table's path is the end of the image's, by whole components; of several ends the longest counts."""
    named: dict[str, str] = {}
    missing = f"--specimen {path}: there is no such file; it takes {RULES}"
    with open_csv(path, ("path", "specimen"), sniff=("path", "specimen"), synonyms=_SYNONYMS, missing=missing) as table:
        at, specimen = table.index("path"), table.index("specimen")
        for line, fields in table:
            key = _normal(fields[at])
            if key in named:
                raise DataError(f"{path} line {line}: {fields[at]} is there twice; keep one of them")
            named[key] = fields[specimen].strip()

    def rule(image: str) -> str | None:
        rest = _normal(image)
        while rest and rest not in named:
            rest = rest.partition("/")[2]
        return named.get(rest) or None

    return rule


def _normal(path: str) -> str:
    return posixpath.normpath(path.strip().replace("\\", "/")).lstrip("/")


def combined(probabilities: Floats) -> Floats:
    """The probabilities of a specimen from those of its images: 1 - prod(1 - p) ** (1 / N).

    Args:
        probabilities: (N, L), N at least 1.

    Returns:
        (L,); of one image exactly its own.
    """
    if len(probabilities) == 1:
        only: Floats = probabilities[0]
        return only
    result: Floats = 1.0 - np.prod(1.0 - probabilities, axis=0) ** (1.0 / len(probabilities))
    return result


class SpecimensCsv:
    """Writes specimens.csv, a row per specimen in the order of their names.

    The rows of images, which come in any order, wait in a temporary database of SQLite, on disk when there are many.

    Args:
        file: open for writing bytes.
        contract: labels and thresholds.
        rule: as `--specimen` takes it.
        decimals: round to so many; None for seven significant digits.
        extra: columns of the table of images; those of `SPECIMEN_EXTRA` are written here, too.
        levels: the broader names that an `answer` may be.
    """

    def __init__(
        self,
        file: BinaryIO,
        contract: ModelContract,
        rule: str,
        *,
        decimals: int | None = None,
        extra: Sequence[str] = (),
        levels: Levels | None = None,
    ) -> None:
        self._file = file
        self._contract = contract
        self._labels = contract.labels
        self._extra = [name for name in extra if name in SPECIMEN_EXTRA]
        self._levels = levels
        self._thresholds = np.array(contract.thresholds)
        self._decimals = decimals
        self._rule = specimen_rule(rule)
        #: Rows written; images that the rule says nothing about, and the path of the first.
        self.specimens, self.unnamed, self.unnamed_example = 0, 0, ""
        self._numbers = ",%.7g" * len(contract.labels) + "\n"
        CsvWriter(file, [*SPECIMEN_COLUMNS, *self._extra, *contract.labels])
        with _disk_errors():
            self._images = sqlite3.connect("")  # a temporary file that SQLite removes
            self._images.execute("CREATE TABLE image (specimen BLOB, number INTEGER PRIMARY KEY, probabilities BLOB)")

    def write(self, row: TableRow | Failure) -> None:
        """Take the row of an image; failures are of no specimen."""
        if isinstance(row, Failure):
            return
        name = self._rule(row.result.path)
        if not name:
            name = row.result.path
            self.unnamed += 1
            self.unnamed_example = self.unnamed_example or name
        values = np.array(row.values, np.float64).tobytes()
        with _disk_errors():
            self._images.execute("INSERT INTO image VALUES (?, NULL, ?)", (encode(name), values))

    def finish(self) -> None:
        """Write all rows. Before the file gets its name."""
        with _disk_errors():
            found = self._images.execute("SELECT specimen, probabilities FROM image ORDER BY specimen, number")
            for name, images in groupby(found, key=lambda image: image[0]):
                values = np.array([np.frombuffer(image[1], np.float64) for image in images])
                self._write(name.decode("utf-8", "surrogateescape"), len(values), combined(values))

    def close(self) -> None:
        """Remove the temporary database."""
        self._images.close()

    def _write(self, name: str, images: int, values: Floats) -> None:
        self.specimens += 1
        values = values if self._decimals is None else values.round(self._decimals)
        order = np.argsort(-values, kind="stable").tolist()
        minerals = [self._labels[index] for index in order if values[index] >= self._thresholds[index]]
        leading = csv_line([formula_safe_text(name), images, SEPARATOR.join(minerals), *self._extra_cells(values)])
        self._file.write(encode(leading + self._numbers % tuple(values.tolist())))

    def _extra_cells(self, values: Floats) -> list[str]:
        """The answer and the most probable labels of a specimen, as far as they are asked for."""
        cells = best_columns(values.tolist(), self._contract) if BEST in self._extra else {}
        if self._levels is not None:
            (answer,) = self._levels.answers(values[np.newaxis], values[np.newaxis] >= self._thresholds)
            cells[ANSWER] = SEPARATOR.join(answer)
        return [str(cells[name]) for name in self._extra]


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise DataError(
            f"cannot sort the images by specimen: {error}; free some space in the folder for temporary files, or set "
            "SQLITE_TMPDIR to another"
        ) from None
