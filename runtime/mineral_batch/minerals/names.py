"""The 36 minerals of the paper, and the label that each name in use stands for."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from mineral_batch.minerals.table import load_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: The 36 minerals in the paper's order (Wu et al. 2022, section 2), the canonical order of labels.
MINERALS: tuple[str, ...] = (
    "agate", "albite", "almandine", "anglesite", "azurite", "beryl", "cassiterite", "chalcopyrite", "cinnabar",
    "copper", "demantoid", "diopside", "elbaite", "epidote", "fluorite", "galena", "gold", "halite", "hematite",
    "magnetite", "malachite", "marcasite", "opal", "orpiment", "pyrite", "quartz", "rhodochrosite", "ruby",
    "sapphire", "schorl", "sphalerite", "stibnite", "sulfur", "topaz", "torbernite", "wulfenite",
)  # fmt: skip


@cache
def other_names() -> Mapping[str, str]:
    """What else the minerals are called, in plain spelling, in any language, and the label that each name stands for.

    Spellings, synonyms, and varieties every specimen of which is the mineral; not `tourmaline` (elbaite or schorl),
    `garnet` (almandine or demantoid), `chalcedony` or `jasper`, which leave the label open, nor a name of two of them.
    """
    meant: dict[str, set[str]] = {}
    for mineral in load_table().values():
        for name in (name for names in mineral.synonyms.values() for name in names):
            meant.setdefault(_plain(name), set()).add(mineral.name)
    own = {_plain(name) for name in load_table()}
    return {name: next(iter(labels)) for name, labels in meant.items() if len(labels) == 1 and name not in own}


def canonical(name: str, labels: Iterable[str]) -> str | None:
    """The label that a folder's or a table's name stands for, None if it stands for none of them.

    Ignores case, accents, apostrophes, numbering (`Agate_01`, `03 agate`, `agate (2)`) and the plural, reads `_` and
    `-` as a blank, and knows `other_names`; each only where it leads to exactly one label of this set.
    """
    labels = tuple(labels)
    if name in labels:
        return name
    known = _plain_names(labels)
    plain = _plain(name)
    candidates = (plain, plain.removesuffix("s"), plain.removesuffix("es"), re.sub("ies$", "y", plain))
    synonyms = (other_names().get(candidate) for candidate in candidates)
    return next((known[spelling] for spelling in (*candidates, *synonyms) if spelling in known), None)


@lru_cache(maxsize=8)
def _plain_names(labels: tuple[str, ...]) -> dict[str, str]:
    """The labels by their plain names, without those that numbering alone tells apart."""
    plain = [_plain(label) for label in labels]
    count = Counter(plain)
    return {name: label for name, label in zip(plain, labels, strict=True) if count[name] == 1}


def _plain(name: str) -> str:
    """Lower case, without accents, apostrophes and the numbers before and after the name, words one blank apart."""
    letters = unicodedata.normalize("NFKD", name).casefold()
    letters = "".join(c for c in letters if not unicodedata.combining(c))
    words = re.sub(r"[\s_\-]+", " ", re.sub("['’`´]", "", letters))
    return re.sub(r"^[\d\s.()]+(?=[^\d\s.()])|(?<=[^\d\s.()])[\d\s.()]+$", "", words).strip()
