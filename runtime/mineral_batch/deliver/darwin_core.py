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
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from mineral_batch.deliver.darwin_core_tables import ARCHIVE, PACKAGE, Field, Table
from mineral_batch.deliver.records import Delivery, printable
from mineral_batch.files import atomic_file, write_errors
from mineral_batch.results.csv import CsvWriter

_PROFILE = "https://rs.tdwg.org/dwc-dp/1.0/dwc-dp-profile.json"
# Zip files hold times; a fixed one makes the same answers the same bytes.
_TIME = (1980, 1, 1, 0, 0, 0)


def write_data_package(delivery: Delivery, path: Path) -> int:
    """Write the Darwin Core Data Package, zipped; returns how many specimens it has.

    Raises:
        DataError: if it cannot be written.
    """
    with write_errors(path), atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as package:
        descriptor = {
            "profile": _PROFILE,
            "name": "mineral-batch",
            "title": "Minerals identified in photographs",
            "resources": [_resource(table) for table in PACKAGE],
        }
        _add(package, "datapackage.json", json.dumps(descriptor, indent=1, ensure_ascii=False).encode())
        counts = [_add_table(package, table, delivery) for table in PACKAGE]
    return counts[0]


def write_archive(delivery: Delivery, path: Path) -> int:
    """Write the Darwin Core Archive; returns how many records its core has.

    Raises:
        DataError: if it cannot be written.
    """
    with write_errors(path), atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        _add(archive, "meta.xml", _meta().encode())
        counts = [_add_table(archive, table, delivery) for table in ARCHIVE]
    return counts[0]


def _add(package: zipfile.ZipFile, name: str, content: bytes) -> None:
    package.writestr(zipfile.ZipInfo(name, _TIME), content, zipfile.ZIP_DEFLATED)


def _add_table(package: zipfile.ZipFile, table: Table, delivery: Delivery) -> int:
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


def _resource(table: Table) -> dict[str, Any]:
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


def _described(field: Field) -> dict[str, Any]:
    return {
        "name": field.name,
        "title": field.name,
        "description": field.text,
        "type": field.type,
        "dcterms:isVersionOf": field.term,
        **({"constraints": {"required": True, "unique": True}} if field.key == "primary" else {}),
    }


def _foreign(field: Field) -> dict[str, Any]:
    table, _, column = field.key.partition(".")
    return {"fields": [field.name], "reference": {"resource": table, "fields": [column]}}


def _meta() -> str:
    core, *extensions = ARCHIVE
    parts = [_meta_table("core", core, "id"), *(_meta_table("extension", table, "coreid") for table in extensions)]
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<archive xmlns="http://rs.tdwg.org/dwc/text/">\n'
    return f"{head}{''.join(parts)}</archive>\n"


def _meta_table(tag: str, table: Table, identifier: str) -> str:
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
