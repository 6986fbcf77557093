"""Where each fact of the table of minerals comes from, and which other lists say the same (sources.csv)."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

_SEPARATOR = ";"
_EVERY = "*"
Kind = Literal["given", "equal"]


class Sources(NamedTuple):
    """Of one fact about one mineral.

    Attributes:
        given: the work that it follows.
        equal: other lists that were compared in 2026 and say the same; empty if none was found.
    """

    given: str
    equal: tuple[str, ...]


class _Row(NamedTuple):
    fact: str
    names: frozenset[str]
    kind: Kind
    source: str

    def is_about(self, name: str) -> bool:
        return name in self.names or _EVERY in self.names


@cache
def _rows() -> tuple[_Row, ...]:
    text = (files(__package__) / "sources.csv").read_text(encoding="utf-8")
    return tuple(
        _Row(
            row["fact"],
            frozenset(row["names"].split(_SEPARATOR)),
            "given" if row["kind"] == "given" else "equal",
            row["source"],
        )
        for row in csv.DictReader(text.splitlines())
    )


def sources_of(name: str, fact: str) -> Sources:
    """The sources of a fact about a mineral of the package's table.

    Args:
        name: of the mineral.
        fact: column of the table.

    Returns:
        Its sources; of two works that it may follow the one that names the mineral. `given` is empty if none is known.
    """
    about = [row for row in _rows() if row.fact == fact and row.is_about(name)]
    given = sorted((row for row in about if row.kind == "given"), key=lambda row: name not in row.names)
    return Sources(given[0].source if given else "", tuple(row.source for row in about if row.kind == "equal"))
