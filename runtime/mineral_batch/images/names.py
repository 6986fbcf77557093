"""What file names say: image suffixes, and names that are safe in a spreadsheet."""

from __future__ import annotations

from pathlib import PurePath

# A cell that begins with one of these is a formula to a spreadsheet, which would run it.
FORMULA_SIGNS = tuple("=+-@\t\r\n＝＋－＠")

#: The suffixes of images, in lower case. A file named directly is read whatever its suffix.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".dib"}
    | {".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif", ".jp2", ".ppm", ".pgm", ".tga"}
)


def has_image_suffix(name: str) -> bool:
    """Return whether a file in a folder or an archive is read as an image, by its name."""
    return not name.startswith(".") and PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def formula_safe(name: str) -> str:
    """Return a path to the same file that a spreadsheet does not take for a formula."""
    return f"./{name}" if name[:1] in FORMULA_SIGNS else name
