"""Words around numbers."""

from __future__ import annotations


def counted(number: int, noun: str = "image", plural: str | None = None) -> str:
    """`1 image`, `1,383 images`; `2 copies` where the plural is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
