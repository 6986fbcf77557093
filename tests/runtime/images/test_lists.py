"""Lists of inputs: whole or refused, wherever they are, and never in memory."""

from __future__ import annotations

import gzip
import os
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from mineral_batch.errors import DataError
from mineral_batch.images import lists
from mineral_batch.images.discover import find_sources
from mineral_batch.images.lists import read_list
from mineral_batch.images.seen import SeenNames
from mineral_batch.storage import web
from mineral_batch.types import Failure

from ...fakes.web_site import Site, web_site

NAMES = [f"folder/{number:05}.jpg" for number in range(300)]
CONTENT = "".join(f"{name}\n" for name in NAMES).encode()


def test_a_list_may_be_compressed_but_not_cut_off(tmp_path: Path) -> None:
    (tmp_path / "names.txt.gz").write_bytes(gzip.compress(CONTENT))
    assert list(read_list(tmp_path / "names.txt.gz")) == NAMES
    (tmp_path / "half.gz").write_bytes(gzip.compress(CONTENT)[:-20])
    with pytest.raises(DataError, match=r"half\.gz is damaged: its gzip stream is incomplete"):
        read_list(tmp_path / "half.gz")


def test_a_list_can_be_gone_through_many_times_and_names_left_out(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(CONTENT)
    names = read_list(tmp_path / "names.txt")
    assert names.first(2) == NAMES[:2]
    rest = names.without(frozenset(NAMES[:2]))
    assert (names.count(), rest.count()) == (300, 298)
    assert list(rest) == NAMES[2:]
    assert list(names) == NAMES
    assert names.sha256 == rest.sha256


def test_a_small_list_may_be_edited_meanwhile_and_a_large_one_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes(CONTENT)
    small = read_list(file)
    monkeypatch.setattr(lists, "_LARGE", 10)
    large = read_list(file)
    with file.open("ab") as opened:
        opened.write(b"another.jpg\n")
    assert list(small) == NAMES
    with pytest.raises(DataError, match=r"names\.txt has changed while it was read: rerun the command"):
        list(large)


def test_what_is_no_list_of_names_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "_BLOCK", 1000)
    (tmp_path / "photo.raw").write_bytes(b"x" * 5000)
    with pytest.raises(DataError, match="has a line of over 1,000 bytes: not a list of names"):
        read_list(tmp_path / "photo.raw")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_list_from_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(CONTENT,))
    writer.start()
    assert list(read_list(tmp_path / "pipe")) == NAMES
    writer.join()


def test_a_list_is_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "_LARGE", 10)
    (tmp_path / "names.txt").write_bytes(CONTENT * 200)
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_list(tmp_path / "names.txt")) == 60_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * 2**20  # a block, split


def test_a_name_that_is_gone_is_a_failure_in_its_place_and_repeats_are_passed_over(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(b"x")
    lines = [tmp_path / "b.jpg", tmp_path / "gone.jpg", tmp_path / "a.jpg", tmp_path / "./b.jpg", tmp_path]
    (tmp_path / "names.txt").write_text("\n".join(map(str, lines)))
    found = list(find_sources([read_list(tmp_path / "names.txt")]))
    names = [one.path if isinstance(one, Failure) else one.name for one in found]
    assert names == [str(tmp_path / name) for name in ("b.jpg", "gone.jpg", "a.jpg")]
    assert found[1] == Failure(str(tmp_path / "gone.jpg"), "read", "no such file or folder")


def test_names_are_known_again() -> None:
    seen = SeenNames()
    assert "a" not in seen
    assert [seen.add(str(number % 4000)) for number in range(5000)] == [True] * 4000 + [False] * 1000
    assert all(str(number) in seen for number in range(4000))
    assert not any(str(number) in seen for number in range(4000, 8000))


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    pytest.importorskip("urllib3")
    monkeypatch.setattr(web, "RETRY_SECONDS", 0)
    with web_site() as found:
        found.files["names.txt"] = CONTENT
        yield found


@pytest.mark.parametrize("how", ["plain", "chunked", "gzip", "again/3"])
def test_a_list_at_a_url_is_whole(site: Site, how: str) -> None:
    assert list(read_list(f"{site.address}/{how}/names.txt")) == NAMES


def test_an_archive_that_may_not_be_whole_is_refused(site: Site) -> None:
    site.files["x.tar"] = b""
    (failure,) = find_sources([f"{site.address}/endless/x.tar"])
    assert isinstance(failure, Failure)
    assert "the server gives no length, so an archive that breaks off would look complete" in failure.reason


@pytest.mark.parametrize("how", ["plain", "chunked", "gzip", "endless", "again/3"])
def test_an_image_is_read_however_it_is_sent(site: Site, how: str) -> None:
    site.files["a.jpg"] = b"an image"
    (source,) = find_sources([f"{site.address}/{how}/a.jpg"])
    assert not isinstance(source, Failure)
    assert source.read() == b"an image"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("half", "no answer from the server"),
        ("endless", "the server gives no length, so a file that breaks off would look complete"),
        ("round", "redirected more than"),
        ("again/1000", "redirected more than"),
    ],
)
def test_a_list_that_may_not_be_whole_is_refused(site: Site, how: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_list(f"{site.address}/{how}/names.txt")
    assert "\n" not in str(error.value)
