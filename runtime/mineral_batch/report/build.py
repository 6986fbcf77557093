"""Write a report: one HTML file that holds everything, or a folder for large runs."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from mineral_batch.errors import DataError
from mineral_batch.files import atomic_file, atomic_folder, write_errors
from mineral_batch.report.data import ROWS, frame, pages, script_json
from mineral_batch.report.groups import Groups, find_groups
from mineral_batch.report.page import page, script
from mineral_batch.report.thumbnails import find_base, small_files, thumbnails
from mineral_batch.results.seals import SealedFile, require_sealed
from mineral_batch.results.written import is_nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from mineral_batch.evaluation.curves import Accuracy
    from mineral_batch.report.explained import Explained
    from mineral_batch.results.read import Results

#: With thumbnails, a single page with more images and maps would be over a hundred megabytes.
LARGEST_FILE = 15_000
INDEX = "index.html"
_MARKER = "mineral-batch-report"
# Of the folder of a report; nothing else may be in it when it is replaced.
_ENTRIES = {INDEX, _MARKER, "thumbs", "maps", "data"}
_PER_FOLDER = 1000
_PER_BLOCK = 50
_END = "</body>\n</html>\n"


@dataclass(frozen=True)
class ReportOptions:
    """How to make a report.

    Attributes:
        base: where the run's relative paths start; None: the current folder or, if none of the images is there, that
            of the results.
        size: longest side of the thumbnails, pixels; 0: none.
        threads: that make them; None: one per CPU.
        on_thumbnail: called after each thumbnail.
        explained: maps to show beside the photographs.
        groups: what photographs are grouped and found by besides the minerals; None for the names of the minerals.
    """

    base: Path | None = None
    size: int = 192
    threads: int | None = None
    on_thumbnail: Callable[[], object] = lambda: None
    explained: Explained | None = None
    groups: Groups | None = None


class Written(NamedTuple):
    """How many small copies a report has: of photographs, and of maps."""

    photos: int
    maps: int


def write_file(results: Results, accuracy: Accuracy | None, target: Path, options: ReportOptions) -> Written:
    """Write one HTML file that holds everything.

    Raises:
        DataError: if there are too many images for one file or it cannot be written.
    """
    _refuse_too_many(len(results.predictions.paths), options)
    base, groups = _base(results, options), options.groups or find_groups(results)
    with write_errors(target), atomic_file(target) as opened:
        file = SealedFile(opened)
        _write(file, page(results, accuracy, options.explained, groups, in_folder=False))
        _write_data(file, "frame", frame(results, accuracy, _link(target.parent, base), groups))
        for rows in pages(results, accuracy, groups):
            _write_data(file, "rows", rows)
        photos = ((str(index), content) for index, content in _thumbnails(results, base, options))
        maps = ((f"{index}-{label}", content) for (index, label), content in _maps(options))
        written = Written(_write_blocks(file, "thumbnails", photos), _write_blocks(file, "maps", maps))
        _write(file, f"<script>{script()}</script>{_END}")
        file.seal()
    return written


def _refuse_too_many(images: int, options: ReportOptions) -> None:
    maps = options.explained.count if options.explained else 0
    if options.size and images + maps > LARGEST_FILE:
        what = f"{images} images" + (f" and {maps} maps" if maps else "")
        raise DataError(
            f"{what} are too many for one file with thumbnails (up to {LARGEST_FILE}): use --folder or --thumbnails 0"
        )


def write_folder(results: Results, accuracy: Accuracy | None, target: Path, options: ReportOptions) -> Written:
    """Write a folder: index.html, thumbs/ with a JPEG per image, maps/ per map and data/ with pages of rows.

    An earlier report in `target` is replaced when the new one is complete: `require_report` checks that it is one.

    Raises:
        DataError: if it cannot be written.
    """
    base, groups = _base(results, options), options.groups or find_groups(results)
    with write_errors(target), atomic_folder(target) as folder:
        (folder / _MARKER).touch()
        has_thumbnail = _write_thumbnails(folder / "thumbs", results, base, options)
        maps = _write_maps(folder / "maps", options)
        scripts = _write_rows(folder / "data", pages(results, accuracy, groups), has_thumbnail, maps)
        with (folder / INDEX).open("wb") as opened:
            file = SealedFile(opened)
            _write(file, page(results, accuracy, options.explained, groups, in_folder=True))
            _write_data(file, "frame", frame(results, accuracy, _link(target, base), groups))
            _write(file, *(f'<script src="data/{name}"></script>' for name in scripts))
            _write(file, f"<script>{script()}</script>{_END}")
            file.seal()
    return Written(sum(has_thumbnail), sum(map(len, maps.values())))


def require_report(folder: Path) -> None:
    """Check that a folder is not there, is empty, or holds a report that nobody edited, and nothing else.

    Raises:
        DataError: if it does not, and a new report would replace what is there.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: name a folder with -o")
    if not folder.is_dir() or is_nothing(folder):
        return
    if not (folder / _MARKER).is_file():
        raise DataError(f"{folder} already exists and is not a report: choose a new folder with -o")
    require_sealed(folder / INDEX, "report")
    if others := sorted(path.name for path in folder.iterdir() if path.name not in _ENTRIES):
        raise DataError(f"{folder} has files that report did not write, such as {others[0]}: move them")


def _write_rows(
    folder: Path, pages: Iterator[dict[str, Any]], has_thumbnail: bytearray, maps: dict[int, list[int]]
) -> list[str]:
    """Write the rows as scripts, since a page in a file cannot load JSON; return their names."""
    names = []
    folder.mkdir()
    for number, rows in enumerate(pages):
        start, end = number * ROWS, (number + 1) * ROWS
        rows["thumbnails"] = list(has_thumbnail[start:end])
        rows["maps"] = {str(index - start): labels for index, labels in maps.items() if start <= index < end}
        names.append(f"{number:05}.js")
        content = f"(window.mineralPages ??= []).push({script_json(rows)});\n"
        (folder / names[-1]).write_text(content, "ascii")
    return names


def _base(results: Results, options: ReportOptions) -> Path:
    """Find where the run's relative paths start."""
    if options.base is not None:
        return options.base
    beside = results.table.resolve().parent
    return find_base(results.predictions.paths, [Path(), beside.parent, beside])


def _write(file: BinaryIO | SealedFile, *texts: str) -> None:
    for text in texts:
        file.write(text.encode("utf-8", "replace"))  # the bytes of file names that are not UTF-8 become "?"


def _write_data(file: BinaryIO | SealedFile, kind: str, value: Any, attributes: str = "") -> None:
    _write(file, f'<script type="application/json" class="{kind}"{attributes}>{script_json(value)}</script>\n')


def _write_blocks(file: BinaryIO | SealedFile, kind: str, images: Iterator[tuple[str, bytes]]) -> int:
    """Write {key: JPEG as base64}, a few in each element; return how many there were."""
    written = 0
    while block := {key: base64.b64encode(content).decode() for key, content in islice(images, _PER_BLOCK)}:
        written += len(block)
        # The keys are also an attribute, so that the script need not parse every image to find one.
        _write_data(file, kind, block, f' data-keys="{" ".join(block)}"')
    return written


def _thumbnails(results: Results, base: Path, options: ReportOptions) -> Iterator[tuple[int, bytes]]:
    if not options.size:
        return
    paths, limit = results.predictions.paths, results.max_pixels
    for index, content in thumbnails(paths, base, options.size, options.threads, max_pixels=limit):
        yield index, content
        options.on_thumbnail()


def _maps(options: ReportOptions) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Yield JPEGs of the maps, each with (row of the predictions, label)."""
    if not options.size or options.explained is None:
        return
    overlays = options.explained.overlays.items()
    files = (((index, one.label), one.file) for index, several in overlays for one in several)
    for key, content in small_files(files, options.size, options.threads):
        yield key, content
        options.on_thumbnail()


def _write_maps(folder: Path, options: ReportOptions) -> dict[int, list[int]]:
    """Write the JPEGs of the maps; return {row of the predictions: the labels that have one}."""
    labels: dict[int, list[int]] = {}
    for (index, label), content in _maps(options):
        file = _numbered(folder, index, f"-{label}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        labels.setdefault(index, []).append(label)
    return labels


def _write_thumbnails(folder: Path, results: Results, base: Path, options: ReportOptions) -> bytearray:
    """Write the JPEGs; return (N,) 1 for each image that has one."""
    has_thumbnail = bytearray(len(results.predictions.paths))
    folder.mkdir()
    for index, content in _thumbnails(results, base, options):
        file = _numbered(folder, index)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        has_thumbnail[index] = 1
    return has_thumbnail


def _numbered(folder: Path, index: int, suffix: str = "") -> Path:
    """Name an image's file: a thousand images to a folder."""
    return folder / f"{index // _PER_FOLDER:05}" / f"{index:08}{suffix}.jpg"


def _link(folder: Path, base: Path) -> str:
    """Return the relative URL from a page in `folder` to `base`, ending with a slash."""
    try:
        relative = os.path.relpath(base.resolve(), folder.resolve())
    except ValueError:  # another drive
        return base.resolve().as_uri() + "/"
    address = quote(os.fsencode(Path(relative).as_posix()))
    return "./" if address == "." else f"./{address}/"
