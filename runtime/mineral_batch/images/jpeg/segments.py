"""The scans of a JPEG file and their tables (ITU-T T.81), as far as they tell about damage."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

_DHT, _EOI, _SOS, _DRI = 0xC4, 0xD9, 0xDA, 0xDD
# Frames; 0xC4, 0xC8 and 0xCC are none.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_DHT, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1)
_PROGRESSIVE = 0xC2
# Segments and fill bytes that are walked through; a profile of 16 MB takes 255.
_MAX_SEGMENTS = 1_000_000


@dataclass(frozen=True)
class HuffmanTable:
    """A table as a file defines it.

    Attributes:
        counts: number of codes of each length, 1 to 16 bits.
        symbols: in the order of their codes.
    """

    counts: bytes = b""
    symbols: bytes = b""

    @property
    def zero_symbol(self) -> int:
        """The symbol whose code is all zeros: the first one."""
        return self.symbols[0] if self.symbols else 0

    def codes(self) -> dict[tuple[int, int], int]:
        """Return (length, code) -> symbol."""
        codes, code, symbols = {}, 0, iter(self.symbols)
        for length, number in enumerate(self.counts, 1):
            for symbol in islice(symbols, number):
                codes[length, code] = symbol
                code += 1
            code <<= 1
        return codes


@dataclass(frozen=True)
class Component:
    """One component in a scan: its blocks per MCU, and its tables."""

    blocks: int
    dc_table: HuffmanTable
    ac_table: HuffmanTable


@dataclass(frozen=True)
class Scan:
    """One scan.

    Attributes:
        start, end: offsets of its entropy-coded data.
        components: in the order of their blocks in an MCU.
        first_coefficient: 0 for a scan with DC coefficients.
        restart_interval: MCUs between restart markers; 0 for none.
    """

    start: int
    end: int
    components: tuple[Component, ...]
    first_coefficient: int
    restart_interval: int


@dataclass
class JpegStructure:
    """What a walk through the segments finds.

    Attributes:
        frame: the marker of the frame, which names the coding process.
        components: of the frame.
        scans: up to the end of the image, or the first `max_scans` and one more.
        has_end: whether the end marker was found.
    """

    frame: int = 0
    components: int = 0
    scans: list[Scan] = field(default_factory=list)
    has_end: bool = False

    @property
    def is_sequential(self) -> bool:
        """Whether it is baseline or extended, Huffman-coded."""
        return self.frame in _SEQUENTIAL

    @property
    def is_progressive(self) -> bool:
        """Whether it is progressive, Huffman-coded."""
        return self.frame == _PROGRESSIVE


def read_structure(content: bytes, max_scans: int) -> JpegStructure:
    """Walk through the segments as far as they are well-formed."""
    return _Walk(content).run(max_scans)


def first_scan(content: bytes) -> tuple[int, bool, int]:
    """Return the offset of the first scan's marker, whether it has all components, and how many pixels.

    Of a frame that is not sequential it never counts as having all. The offset is -1 if the segments before it are not
    well-formed.
    """
    at, components, pixels = 2, 0, 0
    for _ in range(_MAX_SEGMENTS):
        if at + 4 > len(content) or content[at] != 0xFF:
            break
        marker = content[at + 1]
        if marker == _SOS:
            return at, content[at + 4 : at + 5] == bytes((components,)), pixels
        if marker in _FRAMES:
            height, width = (int.from_bytes(content[i : i + 2], "big") for i in (at + 5, at + 7))
            pixels = height * width
        if marker in _SEQUENTIAL:
            components = content[at + 9] if at + 9 < len(content) else 0
        at += 1 if marker == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return -1, False, 0


def count_scan_markers(content: bytes, start: int) -> int:
    """Return how many markers of scans there are from an offset on, those of further images included."""
    return content.count(bytes((0xFF, _SOS)), start)


class _Walk:
    """The state of a walk: the definitions that are in force."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._structure = JpegStructure()
        self._sampling: dict[int, int] = {}
        self._tables: dict[int, HuffmanTable] = {}  # by class and destination, as DHT names them
        self._restart_interval = 0
        self._found: dict[int, int] = {}

    def run(self, max_scans: int) -> JpegStructure:
        content, at = self._content, 2
        for _ in range(_MAX_SEGMENTS):
            if at + 4 > len(content) or content[at] != 0xFF or len(self._structure.scans) > max_scans:
                break
            marker = content[at + 1]
            if marker == 0xFF:  # fill byte
                at += 1
                continue
            if marker == _EOI:
                break
            end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
            if marker == _SOS:
                at = self._read_scan(content[at + 4 : end], end)
                continue
            if marker < 0xE0:  # not the application's segments, which may be long
                self._read_definition(marker, content[at + 4 : end])
            at = end
        self._structure.has_end = content[at : at + 2] == bytes((0xFF, _EOI))
        return self._structure

    def _read_definition(self, marker: int, body: bytes) -> None:
        if marker in _FRAMES and len(body) >= 6:
            self._structure.frame, self._structure.components = marker, body[5]
            self._sampling = {body[i]: (body[i + 1] >> 4) * (body[i + 1] & 15) for i in range(6, len(body) - 2, 3)}
        elif marker == _DRI and len(body) >= 2:
            self._restart_interval = int.from_bytes(body[:2], "big")
        elif marker == _DHT:
            at = 0
            while at + 17 <= len(body):
                counts = body[at + 1 : at + 17]
                self._tables[body[at]] = HuffmanTable(counts, body[at + 17 : at + 17 + sum(counts)])
                at += 17 + sum(counts)

    def _read_scan(self, header: bytes, start: int) -> int:
        """Add a scan; return where its data end."""
        # Markers other than restarts do not occur within entropy-coded data.
        end = min(self._next(marker, start) for marker in (_EOI, _SOS, _DHT))
        number = header[0] if header else 0
        if len(header) >= 4 + 2 * number:
            names = [(header[i], header[i + 1]) for i in range(1, 1 + 2 * number, 2)]
            components = tuple(self._component(name, tables, alone=number == 1) for name, tables in names)
            first = header[1 + 2 * number]
            scan = Scan(start, end, components, first, self._restart_interval)
            self._structure.scans.append(scan)
        return end

    def _next(self, marker: int, start: int) -> int:
        """Return the offset of the next such marker, or the length of the file; each byte is looked at once."""
        if self._found.get(marker, -1) < start:
            offset = self._content.find(bytes((0xFF, marker)), start)
            self._found[marker] = offset if offset >= 0 else len(self._content)
        return self._found[marker]

    def _component(self, name: int, tables: int, *, alone: bool) -> Component:
        # A component alone in its scan has one block per MCU, whatever its sampling.
        blocks = 1 if alone else self._sampling.get(name, 1)
        dc, ac = self._tables.get(tables >> 4), self._tables.get(0x10 | tables & 15)
        return Component(blocks, dc or HuffmanTable(), ac or HuffmanTable())
