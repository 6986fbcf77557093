"""The tables of Darwin Core: their columns, each with its term, and how a delivery makes their rows.

`darwin_core` says which version they follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from mineral_batch.deliver.identifiers import catalog_number, identifiers_of
from mineral_batch.deliver.records import Delivery, Record
from mineral_batch.minerals.table import level_of

_DWC = "http://rs.tdwg.org/dwc/terms/"
_DCTERMS = "http://purl.org/dc/terms/"
_ENTITY, _MEDIA, _PROTOCOL = f"{_DWC}materialEntityID", f"{_DCTERMS}identifier", f"{_DWC}protocolID"
_LIST = " | "
_PHOTOGRAPH = "photograph"  # key of the only protocol
_PROTOCOL_TEXT = "Identified by the look of a photograph; no chemical or crystallographic analysis was made."


@dataclass(frozen=True)
class Field:
    """A column.

    Attributes:
        name: of the column.
        term: URI of the term; empty for a key of an archive.
        text: what it holds.
        key: `primary`, or `table.column` that it points to.
        type: of Frictionless's table schema.
    """

    name: str
    term: str
    text: str
    key: str = ""
    type: str = "string"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: of its file, without suffix.
        fields: its columns.
        rows: makes its rows.
        row_type: URI of what a row is, for an archive.
    """

    name: str
    fields: tuple[Field, ...]
    rows: Callable[[Delivery], Iterator[list[str]]]
    row_type: str = ""


def _specimens(delivery: Delivery) -> Iterator[tuple[str, Record]]:
    """Each specimen once, with the first of its images."""
    seen = set()
    for record in delivery:
        if record.specimen not in seen:
            seen.add(record.specimen)
            yield record.specimen, record


def _names(delivery: Delivery) -> dict[str, dict[str, str]]:
    """The answers by specimen: mineral -> name in the collection; people's answers first."""
    people: dict[str, dict[str, str]] = {}
    model: dict[str, dict[str, str]] = {}
    for record in delivery:
        into = people if record.evidence == "human" else model
        into.setdefault(record.specimen, {}).update(zip(record.minerals, record.names, strict=True))
    return {
        specimen: {**people.get(specimen, {}), **model.get(specimen, {})}
        for specimen in dict.fromkeys([*people, *model])
    }


def _material(delivery: Delivery) -> Iterator[list[str]]:
    ids = identifiers_of(delivery)
    for _, record in _specimens(delivery):
        key = ids.specimen(record)
        yield [key, key, "non-biological", "Mineralogy", catalog_number(record)]


def _geological(delivery: Delivery) -> Iterator[list[str]]:
    ids = identifiers_of(delivery)
    names = _names(delivery)
    for specimen, record in _specimens(delivery):
        if found := names.get(specimen):
            kinds = [level_of(name, delivery.table) or "unspecified" for name in found]
            key = ids.specimen(record)
            yield [key, key, _LIST.join(found.values()), _LIST.join(kinds), _PHOTOGRAPH]


def _media(delivery: Delivery) -> Iterator[list[str]]:
    ids = identifiers_of(delivery)
    for record in delivery.photographs():
        key = ids.image(record.path)
        yield [key, key, "StillImage", ids.name(record.path), record.captured]


def _material_media(delivery: Delivery) -> Iterator[list[str]]:
    ids = identifiers_of(delivery)
    for record in delivery.photographs():
        yield [ids.image(record.path), ids.specimen(record)]


def _protocol(_: Delivery) -> Iterator[list[str]]:
    yield [_PHOTOGRAPH, _PHOTOGRAPH, "identification", "Identification from a photograph", _PROTOCOL_TEXT]


def _answers(delivery: Delivery) -> Iterator[tuple[Record, str, str, str, Iterable[str], str, str]]:
    """(record, kind, by, date, names, accepted, status) of each answer, a person's before the model's."""
    predicted = str(delivery.results.manifest.get("finished", "") or "")
    for record in delivery:
        if record.evidence == "human" and record.minerals:
            yield record, "human", record.reviewer, record.time, record.names, "true", "confirmed by a person"
        is_alone = record.evidence == "machine" and not record.reviewer
        names = list(record.names) if is_alone else [delivery.name(label) for label in record.machine]
        if names:
            accepted = "" if is_alone else "false"
            yield record, "machine", delivery.model, predicted, names, accepted, _status(record)


def _status(record: Record) -> str:
    """What a person said of the model's answer."""
    if not record.reviewer:
        return "unverified"
    if record.evidence == "unsure":
        return f"{record.reviewer} was unsure"
    kept = len({*record.machine} & {*record.minerals})
    said = "confirmed" if kept == len(record.machine) else "partly rejected" if kept else "rejected"
    return f"{said} by {record.reviewer}"


def _remarks(record: Record, kind: str) -> str:
    is_machine = kind == "machine" and (record.reviewer or record.evidence != "machine")
    names = record.machine if is_machine else record.minerals
    known = [f"{name} {value:.3f}" for name in names if (value := record.probability(name)) is not None]
    return f"probability by the model: {', '.join(known)}" if known else ""


def _identification(delivery: Delivery) -> Iterator[list[str]]:
    ids = identifiers_of(delivery)
    for record, kind, by, date, names, accepted, status in _answers(delivery):
        key = ids.identification(record, kind)
        found = _LIST.join(names)
        by_whom = (accepted, by, date, status, _remarks(record, kind))
        # Of several images, material-media has them.
        media = ids.image(record.images[0]) if len(record.images) == 1 else ""
        specimen = ids.specimen(record)
        yield [key, key, "media", _PHOTOGRAPH, specimen, media, found, *by_whom, found]


def _occurrence(delivery: Delivery) -> Iterator[list[str]]:
    ids = identifiers_of(delivery)
    names = _names(delivery)
    for specimen, record in _specimens(delivery):
        found = _LIST.join(names.get(specimen, {}).values())
        key = ids.specimen(record)
        yield [key, key, "MaterialEntity", catalog_number(record), found]


def _history(delivery: Delivery) -> Iterator[list[str]]:
    ids = identifiers_of(delivery)
    for record, kind, by, date, names, _, status in _answers(delivery):
        key, about = ids.identification(record, kind), ids.specimen(record)
        yield [about, key, _LIST.join(names), by, date, status, _remarks(record, kind)]


def _multimedia(delivery: Delivery) -> Iterator[list[str]]:
    ids = identifiers_of(delivery)
    for record in delivery.photographs():
        key, about = ids.image(record.path), ids.specimen(record)
        yield [about, key, "StillImage", ids.name(record.path), record.captured]


def _dwc(name: str, text: str, *, type_: str = "string") -> Field:
    return Field(name, f"{_DWC}{name}", text, type=type_)


_KEY = "Key in this package."
PACKAGE = (
    Table(
        "material",
        (
            Field("materialEntity_pk", _ENTITY, _KEY, "primary"),
            _dwc("materialEntityID", "Identifier of the specimen."),
            _dwc("materialEntityCategory", "What kind of thing it is."),
            _dwc("discipline", "Branch of knowledge."),
            _dwc("catalogNumber", "Number in the inventory of the collection, or name of the specimen."),
        ),
        _material,
    ),
    Table(
        "geological-material",
        (
            Field("materialEntity_fk", _ENTITY, "The specimen.", "material.materialEntity_pk"),
            _dwc("materialEntityID", "Identifier of the specimen."),
            _dwc("geologicalMaterialNames", "What its images show; people's answers first. Proposed term."),
            _dwc("geologicalMaterialNameTypes", "variety, species, group or class, for each name. Proposed term."),
            Field("mineralogicalAnalysisProtocol_fk", _PROTOCOL, "How it was found out.", "protocol.protocol_pk"),
        ),
        _geological,
    ),
    Table(
        "media",
        (
            Field("media_pk", _MEDIA, _KEY, "primary"),
            Field("mediaID", _MEDIA, "Identifier of the image."),
            Field("mediaType", f"{_DCTERMS}type", "Always StillImage."),
            Field("title", f"{_DCTERMS}title", "Path of the file below the folder of the photographs."),
            Field("createDate", "http://ns.adobe.com/xap/1.0/CreateDate", "When it was taken."),
        ),
        _media,
    ),
    Table(
        "material-media",
        (
            Field("media_fk", _MEDIA, "The image.", "media.media_pk"),
            Field("materialEntity_fk", _ENTITY, "The specimen that it shows.", "material.materialEntity_pk"),
        ),
        _material_media,
    ),
    Table(
        "protocol",
        (
            Field("protocol_pk", _PROTOCOL, _KEY, "primary"),
            _dwc("protocolID", "Its identifier."),
            _dwc("protocolType", "What it is for."),
            Field("protocolName", f"{_DCTERMS}title", "Its name."),
            _dwc("protocolDescription", "What was done."),
        ),
        _protocol,
    ),
    Table(
        "identification",
        (
            Field("identification_pk", f"{_DWC}identificationID", _KEY, "primary"),
            _dwc("identificationID", "Its identifier."),
            _dwc("identificationType", "What it is based on: media."),
            Field("identificationProtocol_fk", _PROTOCOL, "How it was made.", "protocol.protocol_pk"),
            Field("materialEntity_fk", _ENTITY, "The specimen.", "material.materialEntity_pk"),
            Field("media_fk", _MEDIA, "The image.", "media.media_pk"),
            _dwc("verbatimIdentification", "The answer."),
            _dwc("isAcceptedIdentification", "true: a person's; false: a person reviewed it.", type_="boolean"),
            _dwc("identifiedBy", "A person, or the model and its hash."),
            _dwc("dateIdentified", "When."),
            _dwc("identificationVerificationStatus", "Whether a person looked at it."),
            _dwc("identificationRemarks", "Calibrated probabilities of the model."),
            _dwc("geologicalMaterialNames", "The minerals. Proposed term."),
        ),
        _identification,
    ),
)
ARCHIVE = (
    Table(
        "occurrence",
        (
            Field("id", "", "Key of the core."),
            _dwc("occurrenceID", ""),
            _dwc("basisOfRecord", ""),
            _dwc("catalogNumber", ""),
            _dwc("verbatimIdentification", ""),
        ),
        _occurrence,
        f"{_DWC}Occurrence",
    ),
    Table(
        "identification",
        (
            Field("coreid", "", "Key of the core."),
            _dwc("identificationID", ""),
            _dwc("verbatimIdentification", ""),
            _dwc("identifiedBy", ""),
            _dwc("dateIdentified", ""),
            _dwc("identificationVerificationStatus", ""),
            _dwc("identificationRemarks", ""),
        ),
        _history,
        f"{_DWC}Identification",
    ),
    Table(
        "multimedia",
        (
            Field("coreid", "", "Key of the core."),
            Field("identifier", _MEDIA, ""),
            Field("type", f"{_DCTERMS}type", ""),
            Field("title", f"{_DCTERMS}title", ""),
            Field("created", f"{_DCTERMS}created", ""),
        ),
        _multimedia,
        "http://rs.gbif.org/terms/1.0/Multimedia",
    ),
)
