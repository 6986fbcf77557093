"""What file names say: image suffixes, folders that hold no photos, and names that are safe in a spreadsheet."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

# A cell that begins with one of these is a formula to a spreadsheet, which would run it.
FORMULA_SIGNS = tuple("=+-@\t\r\n＝＋－＠")

#: The suffixes of images, in lower case. A file named directly is read whatever its suffix.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".dib"}
    | {".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif", ".jp2", ".j2k", ".jpf", ".jpx", ".j2c"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".tga"}
)
#: Those of camera raw, which need rawpy, and of JPEG XL, which needs pillow-jxl-plugin.
RAW_SUFFIXES = frozenset(
    {".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw"}
    | {".3fr", ".iiq", ".x3f", ".kdc", ".dcr", ".mrw", ".erf", ".rwl"}
)
JXL_SUFFIX = ".jxl"

#: Folders in which systems keep thumbnails, deleted files and metadata. Hidden ones are skipped anyway.
SYSTEM_FOLDERS = frozenset(
    {"@eadir", "#recycle", "@recycle", "$recycle.bin", "recycler", "system volume information", "__macosx"}
    | {"lost+found"}
)
# What `mineral-batch deliver --as folders` leaves in its tree, whose folders hold links to photos.
DELIVERED = "mineral-batch-folders.csv"
# Our own output: a folder with these entries -> those of them that hold images made from photos.
_OUTPUTS = (
    (frozenset({"maps.csv", "overlays"}), frozenset({"overlays", "maps"})),  # mineral-batch explain
    (frozenset({"index.html", "thumbs", "data"}), frozenset({"thumbs", "maps"})),  # mineral-batch report --folder
)
#: The entries of a folder that must be known to tell our own output.
OUTPUT_ENTRIES = frozenset({DELIVERED}).union(*(entries for entries, _ in _OUTPUTS))


class _AllNames:
    def __contains__(self, name: object) -> bool:
        return True


class ListedName(str):
    """A name from a list of files: it is taken literally, never as a glob."""

    __slots__ = ()


def has_image_suffix(name: str) -> bool:
    """Return whether a file in a folder or an archive is read as an image: by its name, if its decoder is installed."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a path object for each file would take longer
    if name.startswith(".") or not suffix:
        return False
    if suffix in RAW_SUFFIXES:
        return _is_installed("rawpy")
    return suffix in IMAGE_SUFFIXES or (suffix == JXL_SUFFIX and _is_installed("pillow_jxl"))


@cache
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def output_folders(entries: Container[str]) -> Container[str]:
    """Return which of a folder's sub-folders are our own output, by the folder's entries."""
    if DELIVERED in entries:
        return _AllNames()
    skipped: frozenset[str] = frozenset()
    for needed, folders in _OUTPUTS:
        if all(entry in entries for entry in needed):
            skipped |= folders
    return skipped


def formula_safe(name: str) -> str:
    """Return a path to the same file that a spreadsheet does not take for a formula."""
    return f"./{name}" if name[:1] in FORMULA_SIGNS else name
