"""A tree of folders by mineral: links to the photographs, or copies; several minerals, several places.

What was made is listed in a file of the tree, so that it can be taken back and nothing else is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from mineral_batch.deliver.made import Made, begin_tree, take_back, write_made
from mineral_batch.deliver.records import Delivery, Record
from mineral_batch.errors import DataError
from mineral_batch.files import is_file, write_errors

NONE, UNSURE = "_none", "_unsure"
Kind = Literal["symbolic", "hard", "copy"]
# Not in names of folders on Windows, nor separators anywhere.
_FORBIDDEN = str.maketrans(dict.fromkeys('<>:"/\\|?*', "_"))


@dataclass
class FoldersMade:
    """Counts of a delivery.

    Attributes:
        made: files made.
        kept: those that were there already.
        removed: files of an earlier delivery that this one does not have.
        missing: images whose file is not there, such as members of archives.
    """

    made: int = 0
    kept: int = 0
    removed: int = 0
    missing: int = 0


def make_folders(delivery: Delivery, tree: Path, kind: Kind) -> FoldersMade:
    """Make the tree; what an earlier delivery made and this one does not is taken back.

    Raises:
        DataError: if a file of somebody else's is in the way, or the disk refuses.
    """
    counts, earlier = FoldersMade(), begin_tree(tree)
    rows: dict[str, Made] = {}
    with write_errors(tree):
        tree.mkdir(parents=True, exist_ok=True)
        try:
            for record in delivery.photographs():
                source = delivery.file(record)
                if not is_file(source):
                    counts.missing += 1
                    continue
                for place in _places(record):
                    name = place.as_posix()
                    rows[name] = Made(name, record.path, kind, source.stat().st_size)
                    _make(source.resolve(), tree / place, kind, counts, earlier.get(name))
        finally:
            # Also when it ends early: what is there can be taken back.
            write_made(tree, {**earlier, **rows}.values())
        counts.removed = take_back(tree, (row for name, row in earlier.items() if name not in rows))
        write_made(tree, rows.values())
    return counts


def _places(record: Record) -> Iterator[PurePath]:
    """Below the tree: a folder for each mineral; the path of the image, made short, tells namesakes apart."""
    folders = record.names or ((UNSURE,) if record.evidence == "unsure" else (NONE,))
    digest = hashlib.sha256(record.path.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    image = PurePath(record.path)
    for folder in folders:
        yield PurePath(folder.translate(_FORBIDDEN).strip(". ") or "_", f"{image.stem[:80]}-{digest}{image.suffix}")


def _make(source: Path, target: Path, kind: Kind, counts: FoldersMade, earlier: Made | None) -> None:
    target.parent.mkdir(exist_ok=True)
    if os.path.lexists(target):
        if earlier is None:
            raise DataError(f"{target} is in the way and not of an earlier delivery: choose another folder with -o")
        if _is_same(source, target, kind):
            counts.kept += 1
            return
        _refuse_edited(source, target, earlier)
        target.unlink()
    if kind == "symbolic":
        target.symlink_to(source)
    elif kind == "hard":
        _hard_link(source, target)
    else:
        shutil.copy2(source, target)
    counts.made += 1


def _refuse_edited(source: Path, target: Path, earlier: Made) -> None:
    """A copy has the size and time of the photograph that it was made of; later than that, it was edited."""
    if earlier.kind != "copy" or target.is_symlink():
        return
    found = target.stat()
    if found.st_size != earlier.bytes or found.st_mtime > source.stat().st_mtime:
        raise DataError(
            f"{target} has been edited since the delivery copied it: move it, or choose another folder with -o"
        )


def _hard_link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno != 18:  # EXDEV
            raise
        raise DataError(f"{target.parent} is on another disk than {source}: use --link symbolic or copy") from None


def _is_same(source: Path, target: Path, kind: Kind) -> bool:
    if kind == "symbolic":
        return target.is_symlink() and target.readlink() == source
    if target.is_symlink() or not target.is_file():
        return False
    if kind == "hard":
        return target.samefile(source)
    one, other = source.stat(), target.stat()
    return (one.st_size, int(one.st_mtime)) == (other.st_size, int(other.st_mtime)) and not target.samefile(source)
