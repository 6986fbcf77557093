"""Damage inside a JPEG: what libjpeg's warnings mean, and holes that it does not notice.

A decoder notices damage because the data then end before or after the last block. Data that are left over may also be
harmless: some cameras write stray bytes or padding before the end marker. The two are told apart by reading what is
left over as blocks: data of the image are whole blocks up to the end, stray bytes are not.
"""

from __future__ import annotations

import re

from mineral_batch.errors import ImageError
from mineral_batch.images.jpeg.segments import JpegStructure, Scan, count_scan_markers, first_scan, read_structure

# A run of zeros this long is no image data, unless the tables' all-zero codes mean flat blocks.
_HOLE = bytes(32)
# Bytes that libjpeg-turbo may have read ahead and does not count as left over.
_READ_AHEAD = 8
# More than this left over, and not all the same byte, is not analyzed.
_MAX_STRAY = 4096
# Short segments: damage in the last one may leave over a part of itself, which are no blocks either.
_MAX_STRAY_AFTER_RESTARTS = 64
# Encoders write about ten scans; hundreds are a bomb that takes minutes to decode. Each scan goes through the whole
# image: at 250 megapixels a hundred empty ones take half a minute.
_MAX_SCANS = 200
_USUAL_SCANS = 20
_MAX_SCANNED_PIXELS = 4_000_000_000

_STRAY = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_DAMAGE = re.compile(r"Corrupt JPEG data: (?!bad ICC)(.+)")

#: (length, code) -> symbol.
_Codes = dict[tuple[int, int], int]


def check_structure(content: bytes) -> None:
    """Check a JPEG before it is decoded.

    Raises:
        ImageError: if zeros fill a part of the image data, or if it has too many scans.
    """
    # Most files have no long run of zeros and few scans, which takes a hundredth of the decoding to find out.
    start, is_alone, pixels = first_scan(content)
    limit = max(_USUAL_SCANS, min(_MAX_SCANS, _MAX_SCANNED_PIXELS // max(1, pixels)))
    if start < 0 or (content.find(_HOLE, start) < 0 and (is_alone or count_scan_markers(content, start) <= limit)):
        return
    structure = read_structure(content, limit)
    if len(structure.scans) > limit:
        raise ImageError(f"more than the limit of {limit} scans for an image of {pixels} pixels")
    for scan in structure.scans:
        if not _may_have_zeros(structure, scan) and (hole := _hole(content, scan)) >= 0:
            raise ImageError(f"damaged: zeros instead of image data at byte {hole}")


def check_warning(message: str, content: bytes) -> None:
    """Judge libjpeg's first warning about a JPEG that it has decoded.

    Raises:
        ImageError: if it means damage.
    """
    stray = _STRAY.search(message)
    if stray and _is_stray(content, int(stray[1])):
        return
    if damage := _DAMAGE.search(message):
        raise ImageError(f"damaged: {damage[1]}")


def _hole(content: bytes, scan: Scan) -> int:
    """Return the offset of a run of zeros that does not go on to the end of the scan, where it is padding; else -1."""
    hole = content.find(_HOLE, scan.start, scan.end)
    return hole if hole >= 0 and content[hole : scan.end].strip(b"\0") else -1


def _may_have_zeros(structure: JpegStructure, scan: Scan) -> bool:
    """Return whether a long run of zeros may be image data: a plain background, if its blocks' codes are all zeros."""
    if structure.is_sequential:
        return all(component.ac_table.zero_symbol == 0 for component in scan.components)
    if structure.is_progressive and scan.first_coefficient > 0:
        # Symbols up to 0xE0 with a zero low half end one or more blocks.
        return all(component.ac_table.zero_symbol & 0x0F == 0 for component in scan.components)
    return True


def _is_stray(content: bytes, size: int) -> bool:
    """Return whether the last `size` bytes before the end marker do not belong to the image data."""
    structure = read_structure(content, _MAX_SCANS)
    if not structure.scans or not structure.has_end:
        return False
    scan = structure.scans[-1]
    data = content[scan.start : scan.end]
    left_over = data[-size:]
    if len(set(left_over)) == 1:  # padding, if all of it is left over: the decoder did not read the part before
        return len(data) - len(data.rstrip(left_over[:1])) <= size + _READ_AHEAD
    if _hole(content, scan) >= 0:
        return False
    if not structure.is_sequential or len(scan.components) < structure.components:
        return size <= _READ_AHEAD
    if size > (_MAX_STRAY_AFTER_RESTARTS if scan.restart_interval else _MAX_STRAY):
        return False
    return not _are_whole_blocks(data[-size - _READ_AHEAD - 1 :].replace(b"\xff\x00", b"\xff"), scan)


def _are_whole_blocks(data: bytes, scan: Scan) -> bool:
    """Return whether data, from some bit of the first bytes on, are whole MCUs up to the padding of the last byte."""
    tables = [
        (component.dc_table.codes(), component.ac_table.codes())
        for component in scan.components
        for _ in range(component.blocks)
    ]
    bits = f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}"
    failed: set[int] = set()  # bits at which an MCU may start, but does not lead to the end
    for start in range(8 * (_READ_AHEAD + 2)):
        at: int | None = start
        path = []
        while at is not None and at not in failed:
            if at > start and len(bits) - at < 8 and "0" not in bits[at:]:
                return True
            path.append(at)
            at = _skip_mcu(bits, at, tables)
        failed.update(path)
    return False


def _skip_mcu(bits: str, at: int, tables: list[tuple[_Codes, _Codes]]) -> int | None:
    """Return the bit behind the MCU that begins at a bit; None if there is none."""
    position: int | None = at
    for dc_codes, ac_codes in tables:
        if position is None:
            return None
        position = _skip_block(bits, position, dc_codes, ac_codes)
    return position


def _skip_block(bits: str, at: int, dc_codes: _Codes, ac_codes: _Codes) -> int | None:
    size, at = _read_symbol(bits, at, dc_codes)
    if size is None or size > 11:
        return None
    at += size
    coefficient = 1
    while coefficient < 64:
        symbol, at = _read_symbol(bits, at, ac_codes)
        if symbol is None:
            return None
        run, size = symbol >> 4, symbol & 15
        if size == 0 and run < 15:  # end of block
            break
        coefficient += run + 1
        at += size
    return at if coefficient <= 64 and at <= len(bits) else None


def _read_symbol(bits: str, at: int, codes: _Codes) -> tuple[int | None, int]:
    """Return the symbol whose code begins at a bit, and the bit behind it."""
    code = 0
    for length in range(1, 17):
        if at >= len(bits):
            break
        code = code << 1 | (bits[at] == "1")
        at += 1
        if (length, code) in codes:
            return codes[length, code], at
    return None, at
