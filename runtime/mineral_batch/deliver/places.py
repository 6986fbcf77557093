"""Where the images were taken, for maps: GeoJSON (RFC 7946) and GeoPackage (OGC 12-128r19), both in WGS 84.

A GeoPackage is a database of SQLite: Python's own module writes it.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from mineral_batch.deliver.records import Delivery, Record, printable
from mineral_batch.errors import DataError
from mineral_batch.files import atomic_file, write_errors


def write_geojson(delivery: Delivery, path: Path) -> tuple[int, int]:
    """Write a point for each image with a place; returns how many have one, and how many have none.

    Raises:
        DataError: if no image has a place, or the file cannot be written.
    """
    _require_places(delivery)
    written = 0
    with write_errors(path), atomic_file(path) as file:
        file.write(b'{"type": "FeatureCollection", "features": [')
        for record in delivery:
            if record.place is not None:
                file.write((",\n" if written else "\n").encode() + _feature(record, delivery).encode())
                written += 1
        file.write(b"\n]}\n")
    return written, len(delivery) - written


def _require_places(delivery: Delivery) -> None:
    if not delivery.results.has_places:
        raise DataError(
            "no image in the table says where it was taken; if the photographs do, rerun predict with --columns gps "
            "(existing predictions are reused)"
        )


def write_geopackage(delivery: Delivery, path: Path) -> tuple[int, int]:
    """Write a GeoPackage with the layer `photographs`; returns and raises as `write_geojson` does."""
    _require_places(delivery)
    with write_errors(path), tempfile.TemporaryDirectory(dir=path.resolve().parent, prefix=".gpkg-") as folder:
        database = Path(folder) / "new.gpkg"
        try:
            written = _fill(database, delivery)
        except sqlite3.Error as error:
            raise DataError(f"cannot write {path}: {error}") from None
        with atomic_file(path) as file, database.open("rb") as content:
            shutil.copyfileobj(content, file)
    return written, len(delivery) - written


def _fill(database: Path, delivery: Delivery) -> int:
    inventory = "".join(f", {_identifier(f'inventory {name}')} TEXT" for name in delivery.inventory_columns)
    marks = ", ".join("?" * (10 + len(delivery.inventory_columns)))
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.executescript(_GEOPACKAGE.replace("/* inventory */", inventory))
        rows = (tuple(_row(record, delivery)) for record in delivery if record.place is not None)
        written = connection.executemany(f"INSERT INTO photographs VALUES (NULL, {marks})", rows).rowcount  # noqa: S608 - marks only
        connection.execute(
            "UPDATE gpkg_contents SET (min_x, min_y, max_x, max_y) = (SELECT min(longitude), min(latitude), "
            "max(longitude), max(latitude) FROM photographs)"
        )
    return max(written, 0)


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""').replace("\0", "") + '"'


def _row(record: Record, delivery: Delivery) -> Iterator[str | float | bytes | None]:
    assert record.place is not None
    latitude, longitude = record.place
    best = [value for name in record.minerals if (value := record.probability(name)) is not None]
    yield _point(longitude, latitude)
    yield from (printable(record.path), ";".join(record.names), max(best, default=None), record.evidence)
    yield from (record.reviewer or None, record.time or None, delivery.model, longitude, latitude)
    yield from record.inventory


def _point(longitude: float, latitude: float) -> bytes:
    """A point as GeoPackages hold it: a header (little endian, no envelope, EPSG 4326), then well-known binary."""
    return struct.pack("<2sBBi", b"GP", 0, 1, 4326) + struct.pack("<BIdd", 1, 1, longitude, latitude)


_WGS_84 = (
    'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]],PRIMEM["Greenwich",0],'
    'UNIT["degree",0.0174532925199433],AUTHORITY["EPSG","4326"]]'
)
_GEOPACKAGE = f"""
PRAGMA application_id = 1196444487;
PRAGMA user_version = 10300;
CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT NOT NULL, srs_id INTEGER NOT NULL PRIMARY KEY,
    organization TEXT NOT NULL, organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, description TEXT);
INSERT INTO gpkg_spatial_ref_sys VALUES
    ('Undefined cartesian', -1, 'NONE', -1, 'undefined', NULL),
    ('Undefined geographic', 0, 'NONE', 0, 'undefined', NULL),
    ('WGS 84', 4326, 'EPSG', 4326, '{_WGS_84}', NULL);
CREATE TABLE gpkg_contents (table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT UNIQUE,
    description TEXT DEFAULT '', last_change DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER REFERENCES gpkg_spatial_ref_sys(srs_id));
INSERT INTO gpkg_contents (table_name, data_type, identifier, srs_id)
    VALUES ('photographs', 'features', 'photographs', 4326);
CREATE TABLE gpkg_geometry_columns (table_name TEXT NOT NULL UNIQUE REFERENCES gpkg_contents(table_name),
    column_name TEXT NOT NULL, geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL REFERENCES
    gpkg_spatial_ref_sys(srs_id), z TINYINT NOT NULL, m TINYINT NOT NULL, PRIMARY KEY (table_name, column_name));
INSERT INTO gpkg_geometry_columns VALUES ('photographs', 'geom', 'POINT', 4326, 0, 0);
CREATE TABLE photographs (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, geom POINT, path TEXT, minerals TEXT,
    probability DOUBLE, evidence TEXT, reviewer TEXT, decided TEXT, model TEXT, longitude DOUBLE, latitude DOUBLE
    /* inventory */);
"""  # noqa: S608 - constants of this file


def _feature(record: Record, delivery: Delivery) -> str:
    assert record.place is not None
    latitude, longitude = record.place
    properties = {
        "path": printable(record.path),
        **({"images": list(map(printable, record.images))} if delivery.has_specimens else {}),
        "minerals": list(record.names),
        "evidence": record.evidence,
        "reviewer": record.reviewer or None,
        "decided": record.time or None,
        "captured": record.captured or None,
        "model": delivery.model,
        "probabilities": {delivery.name(name): record.probability(name) for name in record.minerals},
        **(
            {"inventory": dict(zip(delivery.inventory_columns, record.inventory, strict=True))} if record.number else {}
        ),
    }
    geometry = {"type": "Point", "coordinates": [longitude, latitude]}
    return json.dumps({"type": "Feature", "geometry": geometry, "properties": properties}, ensure_ascii=False)
