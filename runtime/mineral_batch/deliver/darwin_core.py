"""Darwin Core: the data package (DwC-DP) and the older archive (DwC-A) of what the images show.

Both hold the same: a material entity per specimen, its images, and one identification for the model's answer and one
for a person's, with who, when and how probable. A specimen is an inventory number (`--join`), else what `--specimen`
names, else an image; `identifiers` has how they are named. Where a photograph was taken is not written: in a
collection that is the museum, not the locality of the specimen.

The data package follows the tables of the release candidate of DwC-DP 1.0 (tdwg/dwc, dwc-dp/table-schemas). Its table
`geological-material` and the terms geologicalMaterialNames and geologicalMaterialNameTypes are proposed, not ratified
(tdwg/dwc issues 1050, 943 and 947). The archive follows the Darwin Core text guide and has ratified terms only; its
core is Occurrence, the one that readers of archives take, with MaterialEntity as the basis of the record.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from mineral_batch.deliver.identifiers import catalog_number, identifiers_of
from mineral_batch.deliver.records import Delivery, Record, printable
from mineral_batch.files import atomic_file, write_errors
from mineral_batch.minerals.table import level_of
from mineral_batch.results.csv import CsvWriter

PROFILE = "https://rs.tdwg.org/dwc-dp/1.0/dwc-dp-profile.json"
DWC = "http://rs.tdwg.org/dwc/terms/"
DCTERMS = "http://purl.org/dc/terms/"
_ENTITY, _MEDIA, _PROTOCOL = f"{DWC}materialEntityID", f"{DCTERMS}identifier", f"{DWC}protocolID"
_LIST = " | "
_PHOTOGRAPH = "photograph"  # key of the one protocol
_PROTOCOL_TEXT = "Identified by the look of a photograph; no chemical or crystallographic analysis was made."
# Zip files hold times; a fixed one makes the same answers the same bytes.
_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class _Field:
    name: str
    term: str
    text: str
    key: str = ""  # of `table.column` that it points to, or `primary`
    type: str = "string"


@dataclass(frozen=True)
class _Table:
    name: str
    fields: tuple[_Field, ...]
    rows: Callable[[Delivery], Iterator[list[str]]]
    row_type: str = ""  # of an archive


def write_data_package(delivery: Delivery, path: Path) -> int:
    """Write the Darwin Core Data Package, zipped; returns how many specimens it has.

    Raises:
        DataError: if it cannot be written.
    """
    with write_errors(path), atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as package:
        descriptor = {
            "profile": PROFILE,
            "name": "mineral-batch",
            "title": "Minerals identified in photographs",
            "resources": [_resource(table) for table in _PACKAGE],
        }
        _add(package, "datapackage.json", json.dumps(descriptor, indent=1, ensure_ascii=False).encode())
        counts = [_add_table(package, table, delivery) for table in _PACKAGE]
    return counts[0]


def write_archive(delivery: Delivery, path: Path) -> int:
    """Write the Darwin Core Archive; returns how many records its core has.

    Raises:
        DataError: if it cannot be written.
    """
    with write_errors(path), atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        _add(archive, "meta.xml", _meta().encode())
        counts = [_add_table(archive, table, delivery) for table in _ARCHIVE]
    return counts[0]


def _add(package: zipfile.ZipFile, name: str, content: bytes) -> None:
    package.writestr(zipfile.ZipInfo(name, _TIME), content, zipfile.ZIP_DEFLATED)


def _add_table(package: zipfile.ZipFile, table: _Table, delivery: Delivery) -> int:
    entry = zipfile.ZipInfo(f"{table.name}.csv", _TIME)
    entry.compress_type = zipfile.ZIP_DEFLATED
    count = 0
    with package.open(entry, "w", force_zip64=True) as member, io.BufferedWriter(_Raw(member)) as buffer:
        writer = CsvWriter(buffer, [field.name for field in table.fields])
        for row in table.rows(delivery):
            writer.write([printable(cell) for cell in row])
            count += 1
    return count


class _Raw(io.RawIOBase):
    """A member of a zip file as something to buffer; each of its writes is slow."""

    def __init__(self, member: Any) -> None:
        self._member = member

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return int(self._member.write(bytes(data)))


def _resource(table: _Table) -> dict[str, Any]:
    schema: dict[str, Any] = {"fields": [_described(field) for field in table.fields]}
    if primary := [field.name for field in table.fields if field.key == "primary"]:
        schema["primaryKey"] = primary
    if foreign := [_foreign(field) for field in table.fields if "." in field.key]:
        schema["foreignKeys"] = foreign
    return {
        "name": table.name,
        "path": f"{table.name}.csv",
        "profile": "tabular-data-resource",
        "format": "csv",
        "mediatype": "text/csv",
        "encoding": "utf-8",
        "schema": schema,
    }


def _described(field: _Field) -> dict[str, Any]:
    return {
        "name": field.name,
        "title": field.name,
        "description": field.text,
        "type": field.type,
        "dcterms:isVersionOf": field.term,
        **({"constraints": {"required": True, "unique": True}} if field.key == "primary" else {}),
    }


def _foreign(field: _Field) -> dict[str, Any]:
    table, _, column = field.key.partition(".")
    return {"fields": [field.name], "reference": {"resource": table, "fields": [column]}}


def _meta() -> str:
    core, *extensions = _ARCHIVE
    parts = [_meta_table("core", core, "id"), *(_meta_table("extension", table, "coreid") for table in extensions)]
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<archive xmlns="http://rs.tdwg.org/dwc/text/">\n'
    return f"{head}{''.join(parts)}</archive>\n"


def _meta_table(tag: str, table: _Table, identifier: str) -> str:
    fields = "".join(
        f'    <field index="{index}" term={quoteattr(field.term)}/>\n'
        for index, field in enumerate(table.fields)
        if field.term
    )
    return (
        f'  <{tag} encoding="UTF-8" fieldsTerminatedBy="," linesTerminatedBy="\\n" fieldsEnclosedBy="&quot;" '
        f'ignoreHeaderLines="1" rowType={quoteattr(table.row_type)}>\n'
        f"    <files><location>{table.name}.csv</location></files>\n"
        f'    <{identifier} index="0"/>\n{fields}  </{tag}>\n'
    )


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


def _dwc(name: str, text: str, *, type_: str = "string") -> _Field:
    return _Field(name, f"{DWC}{name}", text, type=type_)


_KEY = "Key in this package."
_PACKAGE = (
    _Table(
        "material",
        (
            _Field("materialEntity_pk", _ENTITY, _KEY, "primary"),
            _dwc("materialEntityID", "Identifier of the specimen."),
            _dwc("materialEntityCategory", "What kind of thing it is."),
            _dwc("discipline", "Branch of knowledge."),
            _dwc("catalogNumber", "Number in the inventory of the collection, or name of the specimen."),
        ),
        _material,
    ),
    _Table(
        "geological-material",
        (
            _Field("materialEntity_fk", _ENTITY, "The specimen.", "material.materialEntity_pk"),
            _dwc("materialEntityID", "Identifier of the specimen."),
            _dwc("geologicalMaterialNames", "What its images show; people's answers first. Proposed term."),
            _dwc("geologicalMaterialNameTypes", "variety, species, group or class, for each name. Proposed term."),
            _Field("mineralogicalAnalysisProtocol_fk", _PROTOCOL, "How it was found out.", "protocol.protocol_pk"),
        ),
        _geological,
    ),
    _Table(
        "media",
        (
            _Field("media_pk", _MEDIA, _KEY, "primary"),
            _Field("mediaID", _MEDIA, "Identifier of the image."),
            _Field("mediaType", f"{DCTERMS}type", "Always StillImage."),
            _Field("title", f"{DCTERMS}title", "Path of the file below the folder of the photographs."),
            _Field("createDate", "http://ns.adobe.com/xap/1.0/CreateDate", "When it was taken."),
        ),
        _media,
    ),
    _Table(
        "material-media",
        (
            _Field("media_fk", _MEDIA, "The image.", "media.media_pk"),
            _Field("materialEntity_fk", _ENTITY, "The specimen that it shows.", "material.materialEntity_pk"),
        ),
        _material_media,
    ),
    _Table(
        "protocol",
        (
            _Field("protocol_pk", _PROTOCOL, _KEY, "primary"),
            _dwc("protocolID", "Its identifier."),
            _dwc("protocolType", "What it is for."),
            _Field("protocolName", f"{DCTERMS}title", "Its name."),
            _dwc("protocolDescription", "What was done."),
        ),
        _protocol,
    ),
    _Table(
        "identification",
        (
            _Field("identification_pk", f"{DWC}identificationID", _KEY, "primary"),
            _dwc("identificationID", "Its identifier."),
            _dwc("identificationType", "What it is based on: media."),
            _Field("identificationProtocol_fk", _PROTOCOL, "How it was made.", "protocol.protocol_pk"),
            _Field("materialEntity_fk", _ENTITY, "The specimen.", "material.materialEntity_pk"),
            _Field("media_fk", _MEDIA, "The image.", "media.media_pk"),
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
_ARCHIVE = (
    _Table(
        "occurrence",
        (
            _Field("id", "", "Key of the core."),
            _dwc("occurrenceID", ""),
            _dwc("basisOfRecord", ""),
            _dwc("catalogNumber", ""),
            _dwc("verbatimIdentification", ""),
        ),
        _occurrence,
        f"{DWC}Occurrence",
    ),
    _Table(
        "identification",
        (
            _Field("coreid", "", "Key of the core."),
            _dwc("identificationID", ""),
            _dwc("verbatimIdentification", ""),
            _dwc("identifiedBy", ""),
            _dwc("dateIdentified", ""),
            _dwc("identificationVerificationStatus", ""),
            _dwc("identificationRemarks", ""),
        ),
        _history,
        f"{DWC}Identification",
    ),
    _Table(
        "multimedia",
        (
            _Field("coreid", "", "Key of the core."),
            _Field("identifier", _MEDIA, ""),
            _Field("type", f"{DCTERMS}type", ""),
            _Field("title", f"{DCTERMS}title", ""),
            _Field("created", f"{DCTERMS}created", ""),
        ),
        _multimedia,
        "http://rs.gbif.org/terms/1.0/Multimedia",
    ),
)
