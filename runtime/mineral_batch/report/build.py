"""What a run found, to look at: one HTML page with a gallery and figures, or a folder for big runs, and plots.

results.py      the tables of a run, in memory
accuracy.py     against labels: curves, confusions, worst mistakes
explained.py    the maps of `explain` that belong to a run
figures.py      the figures as arrays, for page and plots alike
thumbnails.py   small copies of the photographs
charts.py       SVG; markup.py: escaping
page.py         the page; assets/: its style sheet and its script
plots.py        the same figures as PNG and SVG for papers, by matplotlib
"""

from __future__ import annotations

import base64
import os
import secrets
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple
from urllib.parse import quote

from mineral_batch.errors import DataError
from mineral_batch.files import atomic_file
from mineral_batch.report import page
from mineral_batch.report.markup import Markup, script_json, tag
from mineral_batch.report.thumbnails import find_base, small_files, thumbnails

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mineral_batch.evaluation.curves import Accuracy
    from mineral_batch.report.explained import Explained
    from mineral_batch.results.read import Results

#: With thumbnails, a single page of more pictures and maps would be over a hundred megabytes.
LARGEST_FILE = 15_000
INDEX = "index.html"
_MARK = "mineral-batch-report"
_PER_FOLDER = 1000
_PER_BLOCK = 50


@dataclass(frozen=True)
class Options:
    """How a report is made.

    Attributes:
        base: where the run's relative paths start; None: the current folder or, if none of them is there, that of
            the results.
        size: longest side of the thumbnails, pixels; 0 for none.
        threads: that make them; None: one per processor.
        made: called after each thumbnail.
        explained: maps to show beside the photographs.
    """

    base: Path | None = None
    size: int = 192
    threads: int | None = None
    made: Callable[[], object] = lambda: None
    explained: Explained | None = None


class Made(NamedTuple):
    """How many small copies a report has: of photographs, and of maps."""

    photographs: int
    maps: int


def write_file(results: Results, accuracy: Accuracy | None, target: Path, options: Options | None = None) -> Made:
    """Write one HTML file that holds everything.

    Raises:
        DataError: if there are too many pictures for one file, or it cannot be written.
    """
    options = options or Options()
    _refuse_too_many(len(results.predictions.paths), options)
    base = base_of(results, options)
    with _explaining(target), atomic_file(target) as file:
        _write(file, page.head(page.title_of(results), in_folder=False), "<body>\n")
        _write(file, page.body(results, accuracy, options.explained))
        _write_data(file, "frame", page.frame(results, accuracy, _link(target.parent, base)))
        for rows in page.pages(results, accuracy):
            _write_data(file, "rows", rows)
        photographs = ((str(index), content) for index, content in _thumbnails(results, base, options))
        maps = ((f"{index}-{label}", content) for (index, label), content in _maps(options))
        made = Made(_write_blocks(file, "thumbnails", photographs), _write_blocks(file, "maps", maps))
        _write(file, page.script(), "</body>\n</html>\n")
    return made


def _refuse_too_many(pictures: int, options: Options) -> None:
    maps = options.explained.count if options.explained else 0
    if options.size and pictures + maps > LARGEST_FILE:
        what = f"{pictures} pictures" + (f" and {maps} maps" if maps else "")
        raise DataError(
            f"{what} are too many for one file with thumbnails (up to {LARGEST_FILE}): give --folder, or --thumbnails 0"
        )


def write_folder(results: Results, accuracy: Accuracy | None, target: Path, options: Options | None = None) -> Made:
    """Write a folder: index.html, thumbs/ with a JPEG per picture, maps/ per map and data/ with the rows in pages.

    An earlier report in `target` is replaced when the new one is whole.

    Raises:
        DataError: if `target` is something else, or cannot be written.
    """
    options = options or Options()
    base = base_of(results, options)
    with _explaining(target), _whole_folder(target) as folder:
        there = _write_thumbnails(folder / "thumbs", results, base, options)
        mapped = _write_maps(folder / "maps", options)
        scripts = []
        (folder / "data").mkdir()
        for number, rows in enumerate(page.pages(results, accuracy)):
            start = number * page.ROWS
            end = start + page.ROWS
            rows["thumbnails"] = list(there[start:end])
            rows["maps"] = {str(index - start): labels for index, labels in mapped.items() if start <= index < end}
            content = f"(window.mineralPages ??= []).push({script_json(rows)});\n"
            (folder / "data" / f"{number:05}.js").write_text(content, "ascii")
            scripts.append(tag("script", src=f"data/{number:05}.js"))
        with (folder / INDEX).open("wb") as file:
            _write(file, page.head(page.title_of(results), in_folder=True), "<body>\n")
            _write(file, page.body(results, accuracy, options.explained))
            _write_data(file, "frame", page.frame(results, accuracy, _link(target, base)))
            _write(file, *scripts, page.script(), "</body>\n</html>\n")
    return Made(sum(there), sum(map(len, mapped.values())))


def base_of(results: Results, options: Options) -> Path:
    """Where the run's relative paths start."""
    if options.base is not None:
        return options.base
    beside = results.table.resolve().parent
    return find_base(results.predictions.paths, [Path(), beside.parent, beside])


def _write(file: BinaryIO, *texts: str) -> None:
    for text in texts:
        file.write(text.encode("utf-8"))


def _write_data(file: BinaryIO, kind: str, value: Any, **attributes: object) -> None:
    element = tag("script", Markup(script_json(value)), type="application/json", class_=kind, **attributes)
    _write(file, element, "\n")


def _write_blocks(file: BinaryIO, kind: str, pictures: Iterator[tuple[str, bytes]]) -> int:
    """Write {key: JPEG as base64}, a few in each element; gives how many there were."""
    made = 0
    while block := {key: base64.b64encode(content).decode() for key, content in islice(pictures, _PER_BLOCK)}:
        made += len(block)
        # The keys apart, so that the script need not parse all pictures to find one.
        _write_data(file, kind, block, data_keys=" ".join(block))
    return made


def _thumbnails(results: Results, base: Path, options: Options) -> Iterator[tuple[int, bytes]]:
    if not options.size:
        return
    for index, content in thumbnails(results.predictions.paths, base, options.size, options.threads):
        yield index, content
        options.made()


def _maps(options: Options) -> Iterator[tuple[tuple[int, int], bytes]]:
    """JPEGs of the maps, each with (row of the predictions, label)."""
    if not options.size or options.explained is None:
        return
    overlays = options.explained.overlays.items()
    files = (((index, one.label), one.file) for index, several in overlays for one in several)
    for key, content in small_files(files, options.size, options.threads):
        yield key, content
        options.made()


def _write_maps(folder: Path, options: Options) -> dict[int, list[int]]:
    """Write the JPEGs of the maps; {row of the predictions: the labels that have one}."""
    there: dict[int, list[int]] = {}
    for (index, label), content in _maps(options):
        file = _numbered(folder, index, f"-{label}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        there.setdefault(index, []).append(label)
    return there


def _numbered(folder: Path, index: int, suffix: str = "") -> Path:
    """The name of a picture's file: a thousand pictures to a folder."""
    return folder / f"{index // _PER_FOLDER:05}" / f"{index:08}{suffix}.jpg"


def _write_thumbnails(folder: Path, results: Results, base: Path, options: Options) -> bytearray:
    """Write the JPEGs; (N,) 1 for each picture that has one."""
    there = bytearray(len(results.predictions.paths))
    folder.mkdir()
    for index, content in _thumbnails(results, base, options):
        file = _numbered(folder, index)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        there[index] = 1
    return there


def _link(folder: Path, base: Path) -> str:
    """Relative URL from a page in `folder` to `base`, ending with a slash."""
    try:
        relative = os.path.relpath(base.resolve(), folder.resolve())
    except ValueError:  # another drive
        return base.resolve().as_uri() + "/"
    address = quote(os.fsencode(Path(relative).as_posix()))
    return "./" if address == "." else f"./{address}/"


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `target` when the block ends well and vanishes when it does not."""
    if target.exists() and not (target.is_dir() and _is_replaceable(target)):
        raise DataError(f"{target} exists and is no report: name a new folder with -o")
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    new.mkdir()
    try:
        (new / _MARK).touch()
        yield new
        if target.exists():
            shutil.rmtree(target)
        new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _is_replaceable(folder: Path) -> bool:
    return (folder / _MARK).is_file() or next(folder.iterdir(), None) is None


@contextmanager
def _explaining(target: Path) -> Iterator[None]:
    """A full disk or a missing folder, as one line for the user."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror or error}; name a place that exists with -o") from None
