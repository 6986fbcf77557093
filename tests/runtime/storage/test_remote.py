"""Images at URLs: found, read ahead, and failed one by one."""

import gzip
import io
import tarfile
import threading
from functools import partial

import numpy as np
import pytest
from PIL import Image as PILImage

from mineral_batch.errors import DataError, ImageError
from mineral_batch.images import remote
from mineral_batch.images.discover import find_sources
from mineral_batch.images.remote import read_ahead
from mineral_batch.images.skipped import Skipped
from mineral_batch.storage.store import open_store
from mineral_batch.types import Failure, Source


def picture(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 60, 3), np.uint8)
    out = io.BytesIO()
    PILImage.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def put(**objects):
    store = open_store("s3://photos")
    for key, content in objects.items():
        store.put(key, content)
    return store


def names(*inputs, skipped=None):
    return [found.path if isinstance(found, Failure) else found.name for found in find_sources(inputs, skipped)]


@pytest.mark.slow
def test_a_prefix_is_walked_as_a_folder_is(s3):
    put(
        **{
            "set/b.jpg": b"1",
            "set/a/2.JPG": b"1",
            "set/.hidden/x.jpg": b"1",
            "set/@eaDir/x.jpg": b"1",
            "set/notes.txt": b"1",
            "set/more.zip": b"1",
            "settings/c.jpg": b"1",
        }
    )
    skipped = Skipped()
    expected = ["s3://photos/set/a/2.JPG", "s3://photos/set/b.jpg"]
    assert names("s3://photos/set", skipped=skipped) == expected
    assert skipped.record() == {"files": {".zip": 1}, "folders": {"@eaDir": 1}, "other": 1}
    assert names("s3://photos/set/b.jpg", "s3://photos/set/", "s3://photos/set") == expected[::-1]


@pytest.mark.slow
def test_a_new_content_is_a_new_identity(s3):
    store = put(**{"a.jpg": b"12"})
    (before,) = find_sources(["s3://photos/a.jpg"])
    store.put("a.jpg", b"34")
    (after,) = find_sources(["s3://photos/"])
    assert before.size == after.size == 2
    assert before.modified != after.modified
    assert after.read() == b"34"
    with pytest.raises(ImageError, match="has changed since it was listed"):
        before.read()


@pytest.mark.slow
def test_a_file_of_a_web_server_that_changes_is_not_read_as_the_old_one(s3):
    store = put(**{"a.jpg": b"12"})
    (before,) = find_sources([f"{s3.replace('//', '//me:word@')}/photos/a.jpg"])
    assert before.read() == b"12"
    store.put("a.jpg", b"34")
    with pytest.raises(ImageError, match="has changed since it was listed"):
        before.read()


@pytest.mark.slow
def test_what_was_uploaded_as_gzip_is_unpacked(s3):
    whole = gzip.compress(picture())
    put(**{"a.jpg": whole, "half.jpg": whole[:-20], "no.jpg": whole[:2] + b"nonsense"})
    good, half, wrong = find_sources(["s3://photos/"])
    assert good.read() == picture()
    with pytest.raises(ImageError, match="compressed with gzip and incomplete"):
        half.read()
    with pytest.raises(ImageError, match="compressed with gzip and damaged"):
        wrong.read()


@pytest.mark.slow
def test_what_does_not_exist(s3):
    put(**{"a.jpg": b"1"})
    (missing,) = find_sources(["s3://photos/none.jpg"])
    assert isinstance(missing, Failure)
    assert missing.reason == "no such object: s3://photos/none.jpg"
    assert names("s3://photos/none/") == []
    with pytest.raises(DataError, match="no such bucket"):
        names("s3://nowhere/x/")


@pytest.mark.slow
def test_shards_are_streamed_and_a_damaged_one_costs_only_its_rest(s3):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for number in range(3):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(content := picture(number))
            archive.addfile(member, io.BytesIO(content))
    whole = packed.getvalue()
    put(**{"0.tar": whole, "1.tar": whole[:3500], "2.tar": whole})
    found = list(find_sources(["s3://photos/{0..2}.tar"]))
    assert [f.name for f in found[:3]] == [f"s3://photos/0.tar/{n}.jpg" for n in range(3)]
    assert [f.read() for f in found[:3]] == [picture(n) for n in range(3)]
    assert [f.path for f in found if isinstance(f, Failure)] == ["s3://photos/1.tar"]
    assert [f.name for f in found[-3:]] == [f"s3://photos/2.tar/{n}.jpg" for n in range(3)]


@pytest.mark.slow
def test_names_that_come_again_and_what_is_not_read_in_a_streamed_tar(s3):
    packed, versions = io.BytesIO(), [picture(0), picture(1)]
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in (("same.jpg", versions[0]), ("old.7z", b"7z"), ("same.jpg", versions[1])):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    put(**{"a.tar": packed.getvalue()})
    skipped = Skipped()
    source, again = find_sources(["s3://photos/a.tar"], skipped)
    assert source.read() == versions[0]
    assert again.path == "s3://photos/a.tar/same.jpg (2)"
    assert skipped.line() == "Not read: 1 .7z (unpack them)"


@pytest.mark.slow
@pytest.mark.parametrize("is_remote", [False, True])
def test_the_rows_of_a_parquet_file(s3, tmp_path, is_remote):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"bytes": picture(n), "path": f"d/{n}.jpg"} for n in range(4)] + [None]
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"label": list(range(5)), "image": rows}), file, row_group_size=2)
    put(**{"x.parquet": file.read_bytes()})
    root = "s3://photos/x.parquet" if is_remote else str(file)
    *found, empty = find_sources([root])
    assert [f.name for f in found] == [f"{root}/{n}/{n}.jpg" for n in range(4)]
    assert [f.read() for f in found] == [row["bytes"] for row in rows[:4]]
    assert empty == Failure(f"{root}/4", "read", "the row has no image")


@pytest.mark.slow
def test_a_damaged_parquet_file_is_one_failure(tmp_path):
    pytest.importorskip("pyarrow")
    file = tmp_path / "x.parquet"
    file.write_bytes(b"PAR1 nonsense PAR1")
    (failure,) = find_sources([file])
    assert failure.stage == "read"
    assert "\n" not in failure.reason


def remote_source(name, read, size=1):
    return Source(name, size, 0, partial(read, name))


@pytest.fixture
def reads(monkeypatch):
    """What stands for `read_object`: it counts how many read at once, and waits for the test."""
    state = {"now": 0, "most": 0, "go": threading.Event()}
    lock = threading.Lock()

    def read(name):
        with lock:
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
        state["go"].wait(120)
        with lock:
            state["now"] -= 1
        return name.encode()

    monkeypatch.setattr(remote, "read_object", read)
    state["read"] = read
    return state


def test_reads_run_ahead_in_order_and_in_bounds(reads):
    reads["go"].set()
    drawn = []

    def sources():
        for number in range(50):
            drawn.append(number)
            yield remote_source(str(number), reads["read"])

    ahead = read_ahead(sources(), count=4)
    first = next(ahead)
    assert len(drawn) == 4
    assert [first.read(), *(source.read() for source in ahead)] == [str(n).encode() for n in range(50)]
    assert reads["most"] <= 4


def test_large_objects_are_fewer_ahead(reads):
    reads["go"].set()
    drawn = []

    def sources():
        for number in range(9):
            drawn.append(number)
            yield remote_source(str(number), reads["read"], size=100)

    next(read_ahead(sources(), count=8, most=250))
    assert len(drawn) == 3


def test_local_sources_are_not_held_back():
    given = iter([Source("a", 1, 0, lambda: b"a"), Failure("b", "read", "gone")])
    assert next(read_ahead(given)).name == "a"
    assert next(given).path == "b"


def test_the_last_reads_survive_the_end_of_the_sources(reads):
    held = list(read_ahead([remote_source(str(n), reads["read"]) for n in range(8)], count=2))
    reads["go"].set()
    assert [source.read() for source in held] == [str(n).encode() for n in range(8)]
