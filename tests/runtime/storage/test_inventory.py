"""S3 Inventory reports: the same images, with the same identities, as a listing gives."""

import gzip
import json
from urllib.parse import quote_plus

import pytest

from mineral_batch.errors import DataError, ImageError
from mineral_batch.images.discover import find_sources
from mineral_batch.images.skipped import Skipped
from mineral_batch.storage.store import open_store

pytestmark = pytest.mark.slow

KEYS = ("set/a b+c.jpg", "set/größe.jpg", "set/x.jpg", "set/y.tar", "set/notes.txt", "set/@eaDir/x.jpg")
MANIFEST = "s3://results/inv/2026-11-29T01-00Z/manifest.json"
SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag"


@pytest.fixture
def entries(s3):
    photos = open_store("s3://photos")
    for key in KEYS:
        photos.put(key, key.encode())
    return list(photos.list("set/"))


def put_report(kind, files, schema=SCHEMA):
    store = open_store("s3://results")
    for name, content in files.items():
        store.put(name, content)
    record = {
        "sourceBucket": "photos",
        "destinationBucket": "arn:aws:s3:::results",
        "fileFormat": kind,
        "fileSchema": schema,
        "files": [{"key": name, "size": len(content)} for name, content in files.items()],
    }
    store.put("inv/2026-11-29T01-00Z/manifest.json", json.dumps(record).encode())


def csv_rows(entries):
    rows = []
    for entry in entries:
        key, time = quote_plus(entry.key, safe="/"), "2026-11-29T00:00:00.000Z"
        cells = ("photos", key, "v1", "true", "false", entry.size, time)
        rows.append(",".join(f'"{cell}"' for cell in (*cells, entry.etag.strip('"'))))
    return rows


def as_csv(entries):
    old = '"photos","set/old.jpg","v0","false","false","5","2026-11-01T00:00:00.000Z","abc"'
    gone = '"photos","set/gone.jpg","v2","true","true","","2026-11-01T00:00:00.000Z",""'
    rows = [*csv_rows(entries), old, gone]
    halves = rows[:3], rows[3:]
    packed = {f"inv/data/{n}.csv.gz": gzip.compress("\n".join(half).encode() + b"\n") for n, half in enumerate(halves)}
    put_report("CSV", packed)


def as_parquet(entries):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"bucket": "photos", "key": e.key, "size": e.size, "e_tag": e.etag.strip('"')} for e in entries]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    put_report("Parquet", {"inv/data/0.parquet": sink.getvalue().to_pybytes()}, "message s3.inventory {}")


@pytest.mark.parametrize("report", [as_csv, as_parquet])
def test_a_report_gives_what_a_listing_gives(entries, report):
    report(entries)
    skipped, same = Skipped(), Skipped()
    found = list(find_sources([MANIFEST], skipped))
    listed = list(find_sources(["s3://photos/set/"], same))
    assert [(f.name, f.size, f.modified) for f in found] == [(f.name, f.size, f.modified) for f in listed]
    assert [f.read() for f in found] == [f.name.removeprefix("s3://photos/").encode() for f in found]
    assert len(found) == 3
    assert skipped.record() == same.record()
    open_store("s3://photos").put("set/x.jpg", b"another")
    with pytest.raises(ImageError, match="has changed since it was listed"):
        next(source for source in found if source.name.endswith("/x.jpg")).read()


def test_a_report_that_cannot_be_read_whole_is_refused(entries):
    as_csv(entries)
    store = open_store("s3://results")
    whole = store.get("inv/data/1.csv.gz")
    store.put("inv/data/1.csv.gz", whole[:-20])
    with pytest.raises(DataError, match=r"the inventory s3://results/inv/data/1\.csv\.gz cannot be read"):
        list(find_sources([MANIFEST]))
    store.delete("inv/data/1.csv.gz")
    with pytest.raises(DataError, match="no such object"):
        list(find_sources([MANIFEST]))
    put_report("ORC", {})
    with pytest.raises(DataError, match="only CSV and Parquet are read"):
        list(find_sources([MANIFEST]))
    put_report("CSV", {}, "Bucket, Key")
    with pytest.raises(DataError, match="lacks size and etag: choose Size and ETag among the report's fields"):
        list(find_sources([MANIFEST]))
    store.put("inv/2026-11-29T01-00Z/manifest.json", b"[]")
    with pytest.raises(DataError, match="is not a manifest of an S3 Inventory report"):
        list(find_sources([MANIFEST]))
