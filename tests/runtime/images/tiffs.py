"""TIFF files of any kind, written tag by tag."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

_CODES = {"B": 1, "A": 2, "H": 3, "I": 4}


def tiff(
    *pages: dict[int, Any], order: str = "<", subifds: tuple[dict[int, Any], ...] = (), big: bool = False
) -> bytes:
    """A file whose images are in a chain; each a dict of tag -> numbers (SHORT if small, else LONG), text, or bytes.

    Args:
        pages: their tags; the pixels under the key 0, as bytes for one strip or a list for several.
        order: `<` or `>`.
        subifds: sub-images of the first one.
        big: BigTIFF.
    """
    body = bytearray(struct.pack(f"{order}2sH", b"II" if order == "<" else b"MM", 43 if big else 42))
    body += struct.pack(f"{order}HHQ", 8, 0, 0) if big else struct.pack(f"{order}I", 0)
    link = 8 if big else 4
    pointer = "Q" if big else "I"

    def write(page: dict[int, Any], children: list[int]) -> tuple[int, int]:
        """Append an image; where its directory is, and where its link to the next one is."""
        strips = page[0] if isinstance(page[0], list) else [page[0]]
        offsets = []
        for strip in strips:
            offsets.append(len(body))
            body.extend(strip)
        tiled = 322 in page
        tags = {tag: value for tag, value in page.items() if tag}
        tags |= (
            {324: offsets, 325: [len(s) for s in strips]} if tiled else {273: offsets, 279: [len(s) for s in strips]}
        )
        if children:
            tags[330] = children
        entries = []
        for tag, value in sorted(tags.items()):
            code, data, count = _packed(tag, value, order)
            size = struct.calcsize(pointer)
            if len(data) > size:
                entries.append((tag, code, count, struct.pack(f"{order}{pointer}", len(body))))
                body.extend(data)
            else:
                entries.append((tag, code, count, data.ljust(size, b"\0")))
        start = len(body)
        body.extend(struct.pack(f"{order}{'Q' if big else 'H'}", len(entries)))
        for tag, code, count, data in entries:
            body.extend(struct.pack(f"{order}HH{pointer}", tag, code, count) + data)
        body.extend(bytes(struct.calcsize(pointer)))
        return start, len(body) - struct.calcsize(pointer)

    children = [write(child, [])[0] for child in subifds]
    for index, page in enumerate(pages):
        start, following = write(page, children if index == 0 else [])
        body[link : link + struct.calcsize(pointer)] = struct.pack(f"{order}{pointer}", start)
        link = following
    return bytes(body)


def _packed(tag: int, value: Any, order: str) -> tuple[int, bytes, int]:
    if isinstance(value, str):
        return 2, value.encode() + b"\0", len(value) + 1
    if isinstance(value, bytes):
        return 7, value, len(value)
    numbers = value if isinstance(value, (list, tuple)) else [value]
    code = "I" if tag in (273, 279, 324, 325, 330) or max(numbers) > 65535 else "H"
    return _CODES[code], struct.pack(f"{order}{len(numbers)}{code}", *numbers), len(numbers)


def page(
    values: Any, *, bits: int, kind: int = 1, photometric: int = 1, order: str = "<", planar: bool = False,
    compression: int = 1, rows: int | None = None, predictor: int = 1, tile: int | None = None, **tags: Any,
) -> dict[int, Any]:  # fmt: skip
    """The tags of an image of values (H, W) or (H, W, samples)."""
    values = np.asarray(values)
    values = values[..., None] if values.ndim == 2 else values
    height, width, samples = values.shape
    rows = rows or height
    planes = [values[..., [s]] for s in range(samples)] if planar else [values]
    segments = []
    for plane in planes:
        if tile:
            for top in range(0, height, tile):
                for left in range(0, width, tile):
                    block = np.zeros((tile, tile, plane.shape[2]), plane.dtype)
                    part = plane[top : top + tile, left : left + tile]
                    block[: part.shape[0], : part.shape[1]] = part
                    segments.append(_stored(block, bits, order, compression, predictor))
        else:
            segments += [
                _stored(plane[top : top + rows], bits, order, compression, predictor) for top in range(0, height, rows)
            ]
    result = {0: segments, 256: width, 257: height, 258: [bits] * samples, 259: compression, 262: photometric}
    result |= {277: samples, 284: 2 if planar else 1, 339: [kind] * samples, 317: predictor}
    result |= {322: tile, 323: tile} if tile else {278: rows}
    return result | {int(tag[1:]): value for tag, value in tags.items()}


def _stored(values: Any, bits: int, order: str, compression: int, predictor: int) -> bytes:
    if predictor == 2:
        values = np.concatenate([values[:, :1], values[:, 1:] - values[:, :-1]], axis=1)
    flat = values.reshape(values.shape[0], -1)
    if bits in (8, 16, 32, 64):
        data = flat.astype(flat.dtype.newbyteorder(order)).tobytes()
    else:
        planes = (flat[..., None].astype(int) >> np.arange(bits - 1, -1, -1)) & 1
        data = np.packbits(planes.reshape(len(flat), -1).astype(np.uint8), axis=1).tobytes()
    return zlib.compress(data) if compression == 8 else data
