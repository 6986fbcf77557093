"""GeoJSON of the images that say where they were taken (RFC 7946: longitude first, WGS 84)."""

from __future__ import annotations

import json
from pathlib import Path

from mineral_batch.deliver.records import Delivery, Record
from mineral_batch.errors import DataError
from mineral_batch.files import atomic_file, write_errors


def write_geojson(delivery: Delivery, path: Path) -> tuple[int, int]:
    """Write a point for each image with a place; returns how many have one, and how many have none.

    Raises:
        DataError: if no image has a place, or the file cannot be written.
    """
    if not delivery.results.has_places:
        raise DataError(
            "no image in the table says where it was taken; if the photographs do, rerun predict with --columns gps "
            "(what is predicted already is not predicted again)"
        )
    written = 0
    with write_errors(path), atomic_file(path) as file:
        file.write(b'{"type": "FeatureCollection", "features": [')
        for record in delivery:
            if record.place is not None:
                file.write((",\n" if written else "\n").encode() + _feature(record, delivery).encode())
                written += 1
        file.write(b"\n]}\n")
    return written, len(delivery) - written


def _feature(record: Record, delivery: Delivery) -> str:
    assert record.place is not None
    latitude, longitude = record.place
    properties = {
        "path": record.path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),
        "minerals": list(record.minerals),
        "evidence": record.evidence,
        "reviewer": record.reviewer or None,
        "decided": record.time or None,
        "captured": record.captured or None,
        "model": delivery.model,
        "probabilities": {name: record.probabilities.get(name) for name in record.minerals},
    }
    geometry = {"type": "Point", "coordinates": [longitude, latitude]}
    return json.dumps({"type": "Feature", "geometry": geometry, "properties": properties}, ensure_ascii=False)
