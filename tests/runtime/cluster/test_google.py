"""A run from and into Google Cloud Storage, by its XML API: the tables of one machine, resumable, written in chunks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mineral_batch.cluster.place import open_place

from ...fakes.gcs import Bucket, cloud_storage

pytest.importorskip("onnxruntime")
pytest.importorskip("pyarrow")
pytest.importorskip("obstore")

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(album: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket `minerals` with eleven photographs below `photos/`."""
    from mineral_batch.storage import store

    with cloud_storage("minerals") as found:
        monkeypatch.setenv("GOOGLE_BASE_URL", found.address)
        account = {"gcs_base_url": found.address, "disable_oauth": True, "client_email": "", "private_key": ""}
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account | {"private_key_id": ""}))
        store._cloud_store.cache_clear()
        for file in album.iterdir():
            found.write(f"photos/{file.name}", file.read_bytes(), None)
        yield found
        store._cloud_store.cache_clear()


def test_a_run_from_and_into_a_bucket_resumes(bucket: Bucket, tmp_path: Path, command: Any) -> None:
    bucket.write("photos/04.png", b"damaged", None)
    source, output = "gs://minerals/photos", "gs://minerals/results/first"
    assert command(source, "-o", tmp_path / "one").exit_code == 3
    half = command(source, "-o", output, "--shard", "1/2")
    assert half.exit_code in (0, 3), half.output
    whole = command(source, "-o", output)
    assert whole.exit_code == 3, whole.output
    assert "6 images already done" in whole.stdout
    for name in ("predictions.csv", "failures.csv"):
        assert bucket.objects[f"results/first/{name}"][0] == (tmp_path / "one" / name).read_bytes()
    generations = {key: generation for key, (_, generation) in bucket.objects.items() if "/parts/" in key}
    assert len(generations) == 4
    assert "11 images already done" in command(source, "-o", output).stdout
    assert generations == {key: bucket.objects[key][1] for key in generations}
    assert bucket.uploads == {}
    assert sum("continuation-token" in request for request in bucket.asked) > 4  # more than a page


def test_an_object_that_exists_is_left_and_another_generation_is_not_overwritten(bucket: Bucket) -> None:
    place = open_place("gs://minerals/results")
    assert place.put("parts/a", b"one")
    assert not place.put("parts/a", b"two")
    assert place.get("parts/a") == b"one"
    assert place.put("parts/a", b"three", create_only=False)
    assert list(place.keys("parts/")) == ["parts/a"]
    place.delete("parts/a")
    place.delete("parts/a")
    assert place.get("parts/a") is None


def test_a_large_table_is_put_in_chunks(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mineral_batch.storage import store

    monkeypatch.setattr(store, "_CHUNK", 5 * 2**20)
    content = bytes(range(256)) * (12 * 2**12) + b"the end"
    (tmp_path / "large").write_bytes(content)
    open_place("gs://minerals/results").put_file("large", tmp_path / "large")
    assert bucket.objects["results/large"][0] == content
    assert sum("partNumber" in request for request in bucket.asked) == 3
    assert bucket.uploads == {}


def test_what_is_not_there_is_one_line(bucket: Bucket, tmp_path: Path, command: Any) -> None:
    for source, message in {
        "gs://absent/photos": "no such bucket: gs://absent",
        "gs://minerals/none/": "no images in gs://minerals/none/",
    }.items():
        refused = command(source, "-o", tmp_path / "out")
        assert refused.exit_code == 1
        assert message in refused.stderr.splitlines()[-1]


def test_a_key_that_keeps_a_bucket_from_being_listed_is_named(bucket: Bucket, tmp_path: Path, command: Any) -> None:
    bucket.write("photos//02.png", b"1", None)
    refused = command("gs://minerals/photos/", "-o", tmp_path / "out")
    assert refused.exit_code == 1
    assert "Error: gs://minerals/photos//02.png: the key has an empty part" in refused.stderr.splitlines()[-1]
    other = command("gs://minerals/photos//", "-o", tmp_path / "out")
    assert "Error: gs://minerals/photos//: the key has an empty part" in other.stderr.splitlines()[-1]
