"""The 36 minerals of the paper, what people call them, and the label that each name stands for."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: The 36 minerals in the paper's order (Wu et al. 2022, section 2), the canonical order of labels.
MINERALS: tuple[str, ...] = (
    "agate", "albite", "almandine", "anglesite", "azurite", "beryl", "cassiterite", "chalcopyrite", "cinnabar",
    "copper", "demantoid", "diopside", "elbaite", "epidote", "fluorite", "galena", "gold", "halite", "hematite",
    "magnetite", "malachite", "marcasite", "opal", "orpiment", "pyrite", "quartz", "rhodochrosite", "ruby",
    "sapphire", "schorl", "sphalerite", "stibnite", "sulfur", "topaz", "torbernite", "wulfenite",
)  # fmt: skip

#: Other names of the paper's minerals. Spellings, synonyms, and varieties every specimen of which is the mineral;
#: not `tourmaline` (elbaite or schorl), `garnet` (almandine or demantoid), `corundum` (ruby or sapphire),
#: `chalcedony` or `jasper`, which leave the label open.
OTHER_NAMES: Mapping[str, str] = {
    "sulphur": "sulfur",
    "brimstone": "sulfur",
    "haematite": "hematite",
    "specularite": "hematite",
    "zinc blende": "sphalerite",
    "zincblende": "sphalerite",
    "blende": "sphalerite",
    "galenite": "galena",
    "lead glance": "galena",
    "iron pyrites": "pyrite",
    "iron pyrite": "pyrite",
    "copper pyrites": "chalcopyrite",
    "copper pyrite": "chalcopyrite",
    "fluorspar": "fluorite",
    "fluor": "fluorite",
    "rock salt": "halite",
    "antimonite": "stibnite",
    "cinnabarite": "cinnabar",
    "tinstone": "cassiterite",
    "lodestone": "magnetite",
    "rock crystal": "quartz",
    "amethyst": "quartz",
    "citrine": "quartz",
    "rose quartz": "quartz",
    "smoky quartz": "quartz",
    "emerald": "beryl",
    "aquamarine": "beryl",
    "native copper": "copper",
    "native gold": "gold",
    "native sulfur": "sulfur",
    "native sulphur": "sulfur",
}


def canonical(name: str, labels: Iterable[str]) -> str | None:
    """The label that a folder's or a table's name stands for, None if it stands for none of them.

    Ignores case, accents, numbering (`Agate_01`, `03 agate`, `agate (2)`) and the plural, reads `_` and `-` as a blank,
    and knows `OTHER_NAMES`; each only where it leads to exactly one label of this set.
    """
    labels = tuple(labels)
    if name in labels:
        return name
    known = _plain_names(labels)
    plain = _plain(name)
    for candidate in (plain, plain.removesuffix("s"), plain.removesuffix("es"), re.sub("ies$", "y", plain)):
        for spelling in (candidate, OTHER_NAMES.get(candidate)):
            if spelling in known:
                return known[spelling]
    return None


def _plain_names(labels: Sequence[str]) -> dict[str, str]:
    """The labels by their plain names, without those that numbering alone tells apart."""
    plain = [_plain(label) for label in labels]
    return {name: label for name, label in zip(plain, labels, strict=True) if plain.count(name) == 1}


def _plain(name: str) -> str:
    """Lower case, without accents and without the numbers before and after the name, words one blank apart."""
    letters = unicodedata.normalize("NFKD", name).casefold()
    letters = "".join(c for c in letters if not unicodedata.combining(c))
    words = re.sub(r"[\s_\-]+", " ", letters)
    return re.sub(r"^[\d\s.()]+(?=[^\d\s.()])|(?<=[^\d\s.()])[\d\s.()]+$", "", words).strip()
