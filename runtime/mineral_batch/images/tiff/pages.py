"""The images in a TIFF file (TIFF 6.0, BigTIFF, TIFF/EP), and which of them is the photo."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Number types: byte, short, long, signed ones, IFD and their 64-bit forms; others are not needed.
_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_BYTE, _ASCII, _UNDEFINED = 1, 2, 7
_XMP = 700
_SUBIFDS = 330
# Enough for any document; a loop of images ends here.
_MAX_PAGES = 1000
_MAX_VALUES = 10_000_000

#: Photometric interpretation of a camera's sensor data: a color filter array, or interpolated but linear.
SENSOR_DATA = (32803, 34892)


@dataclass(frozen=True)
class Page:
    """One image of a file.

    Attributes:
        offset: of its directory.
        order: `<` or `>`.
        tags: tag -> its numbers.
        in_chain: False for a sub-image of another one.
        xmp_as_text: offset of the type of its XMP data if they are declared as text; 0 if not.
    """

    offset: int
    order: str
    tags: dict[int, tuple[int, ...]] = field(default_factory=dict)
    in_chain: bool = True
    xmp_as_text: int = 0

    def number(self, tag: int, default: int = 0) -> int:
        """Return the first number of a tag."""
        values = self.tags.get(tag)
        return values[0] if values else default

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.number(256) * self.number(257)

    @property
    def is_reduced(self) -> bool:
        """Whether it is a thumbnail or a mask of another image."""
        return bool(self.number(254) & 0b101) or self.number(255) == 2


def is_tiff(content: bytes) -> bool:
    """Return whether it begins as a TIFF or BigTIFF does."""
    return content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_pages(content: bytes) -> list[Page]:
    """Return the images of a file, as far as its directories are well-formed; sub-images behind their parent."""
    if not is_tiff(content):
        return []
    return list(_Reader(content).pages())


def main_page(pages: list[Page]) -> Page | None:
    """Return the photo: the first image, unless it is a reduced version of a larger one elsewhere in the file."""
    if not pages or not pages[0].is_reduced:
        return pages[0] if pages else None
    full = [page for page in pages if not page.is_reduced and page.pixels]
    return max(full, key=lambda page: page.pixels, default=pages[0])


def count_further(pages: list[Page], main: Page) -> int:
    """Return how many images of a file are neither the photo nor a smaller version or a part of another image."""
    return sum(page is not main and page.in_chain and not page.is_reduced and page.pixels > 0 for page in pages)


def with_first_page(content: bytes, page: Page) -> bytes:
    """Return the same file with another image as its first."""
    order = page.order
    if content[2:4] in (b"+\0", b"\0+"):
        return content[:8] + struct.pack(f"{order}Q", page.offset) + content[16:]
    return content[:4] + struct.pack(f"{order}I", page.offset) + content[8:]


def with_xmp_as_bytes(content: bytes, page: Page) -> bytes:
    """Return the same file with an image's XMP data declared as bytes, as Pillow needs them."""
    at = page.xmp_as_text
    return content[:at] + struct.pack(f"{page.order}H", _BYTE) + content[at + 2 :] if at else content


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self._order = "<" if content[:2] == b"II" else ">"
        self._is_big = content[2:4] in (b"+\0", b"\0+")
        self._seen: set[int] = set()

    def pages(self) -> Iterator[Page]:
        offset = self._number("Q", 8) if self._is_big else self._number("I", 4)
        yield from self._chain(offset, in_chain=True)

    def _chain(self, offset: int, *, in_chain: bool) -> Iterator[Page]:
        while offset and offset not in self._seen and len(self._seen) < _MAX_PAGES:
            self._seen.add(offset)
            try:
                page, following = self._page(offset, in_chain=in_chain)
            except struct.error:  # beyond the end of the file
                return
            yield page
            for child in page.tags.get(_SUBIFDS, ()):
                yield from self._chain(child, in_chain=False)
            offset = following if in_chain else 0

    def _page(self, offset: int, *, in_chain: bool) -> tuple[Page, int]:
        count_type, entry_size, pointer = ("Q", 20, "Q") if self._is_big else ("H", 12, "I")
        count = self._number(count_type, offset)
        at = offset + struct.calcsize(count_type)
        tags = {}
        xmp_as_text = 0
        for _ in range(min(count, 4096)):
            tag, kind = self._number("H", at), self._number("H", at + 2)
            if (tag, kind) == (_XMP, _ASCII):
                xmp_as_text = at + 2
            values = self._values(kind, at + 4, pointer)
            if values:
                tags[tag] = values
            at += entry_size
        following = self._number(pointer, offset + struct.calcsize(count_type) + count * entry_size)
        return Page(offset, self._order, tags, in_chain, xmp_as_text), following

    def _values(self, kind: int, at: int, pointer: str) -> tuple[int, ...]:
        """Return an entry's numbers; none for other types, or where they are beyond the end of the file."""
        code, count = ("B" if kind == _UNDEFINED else _TYPES.get(kind)), self._number(pointer, at)
        if code is None or count > _MAX_VALUES:
            return ()
        at += struct.calcsize(pointer)
        size = count * struct.calcsize(code)
        start = at if size <= struct.calcsize(pointer) else self._number(pointer, at)
        if start + size > len(self._content):
            return ()
        return struct.unpack_from(f"{self._order}{count}{code}", self._content, start)

    def _number(self, code: str, at: int) -> int:
        number: int = struct.unpack_from(self._order + code, self._content, at)[0]
        return number
