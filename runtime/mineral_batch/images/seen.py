"""Which names came before, for tens of millions of them."""

from __future__ import annotations

import sys
from array import array

_MASK = 2 * sys.maxsize + 1


class SeenNames:
    """Names that were seen, as 64 bits of each: 12 to 24 bytes a name, where a set of texts takes 150.

    The bits are of Python's keyed hash. That any two of fifty million names share them has a chance of 1 in 15,000.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))  # a hash table with linear probing; 0 is a free slot
        self._used = 0

    def add(self, name: str) -> bool:
        """Take the next name; return whether it is new."""
        slots, place = self._slots, self._find(name)
        if slots[place]:
            return False
        slots[place] = _key(name)
        self._used += 1
        if 3 * self._used > 2 * len(slots):
            self._grow()
        return True

    def __contains__(self, name: str) -> bool:
        return self._used > 0 and self._slots[self._find(name)] != 0

    def _find(self, name: str) -> int:
        """The slot of a name, or the free one where it belongs."""
        return _probe(self._slots, _key(name))

    def _grow(self) -> None:
        old, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
        for key in old:
            if key:
                self._slots[_probe(self._slots, key)] = key


def _key(name: str) -> int:
    return hash(name) & _MASK or 1


def _probe(slots: array[int], key: int) -> int:
    last = len(slots) - 1
    place = key & last
    while slots[place] and slots[place] != key:
        place = (place + 1) & last
    return place
