"""Identifiers for Darwin Core: the same in every delivery, and without a path of the machine that made it.

Darwin Core asks for globally unique, persistent identifiers. A collection that has its own gives their beginning
(`--id-prefix https://collection.example.org/object/`); the inventory number follows, percent-encoded (RFC 3986).
Otherwise they are UUIDs of version 5 (RFC 9562): the same name always gives the same UUID.
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path, PurePath
from urllib.parse import quote
from uuid import NAMESPACE_URL, UUID, uuid5

from mineral_batch.deliver.records import Delivery, Record

_OURS = uuid5(NAMESPACE_URL, "urn:mineral-batch:delivery")


@dataclass(frozen=True)
class Identifiers:
    """Names specimens, images and identifications.

    Attributes:
        prefix: of a specimen's identifier; None for UUIDs.
        base: the folder below which the images with absolute paths lie.
    """

    prefix: str | None = None
    base: Path = Path()

    def specimen(self, record: Record) -> str:
        """Of the specimen of a record: its inventory number or name after the prefix, else a UUID."""
        if self.prefix is None:
            return self._uuid("specimen", record.specimen)
        is_path = record.specimen in record.images
        name = self.name(record.specimen) if is_path else record.specimen
        return self.prefix + quote(name.encode("utf-8", "surrogateescape"), safe="/" if is_path else "")

    def image(self, path: str) -> str:
        """Of an image."""
        return self._uuid("image", path)

    def identification(self, record: Record, kind: str) -> str:
        """Of the answer of a person or of the model about a record."""
        return self._uuid(f"identification {kind}", record.path)

    def name(self, path: str) -> str:
        """An image's path below the folder of the photographs: nothing about this machine."""
        image = PurePath(path)
        if not image.is_absolute():
            return image.as_posix()
        return image.relative_to(self.base).as_posix() if image.is_relative_to(self.base) else image.name

    def _uuid(self, kind: str, name: str) -> str:
        known = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return uuid5(self._namespace, f"{kind}\n{known}").urn

    @cached_property
    def _namespace(self) -> UUID:
        """A prefix of a collection's own makes its UUIDs different from those of all others, too."""
        return _OURS if self.prefix is None else uuid5(_OURS, self.prefix)


def identifiers_of(delivery: Delivery) -> Identifiers:
    """The identifiers of a delivery's specimens and images."""
    paths = chain.from_iterable(delivery.images.values()) if delivery.images else delivery.results.predictions.paths
    folders = {posixpath.dirname(path) for path in paths if PurePath(path).is_absolute()}
    return Identifiers(delivery.id_prefix, Path(os.path.commonpath(folders)) if folders else Path())


def catalog_number(record: Record) -> str:
    """The inventory number, else the name that a rule found for the specimen; empty if there is neither."""
    return record.number or (record.group if record.group not in record.images else "")
