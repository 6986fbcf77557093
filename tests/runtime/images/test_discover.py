"""What is found where: lists, globs and archives, whole, damaged, nested, hostile; nothing is lost without a word."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image as PILImage

from mineral_batch import DataError, Failure
from mineral_batch.errors import ImageError
from mineral_batch.images.archives import is_archive
from mineral_batch.images.discover import count_sources, find_sources
from mineral_batch.images.lists import read_list
from mineral_batch.types import Source

if TYPE_CHECKING:
    from collections.abc import Mapping


def png(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    PILImage.new("RGB", (9, 7), (shade, 2 * shade % 256, 100)).save(buffer, "PNG")
    return buffer.getvalue()


def found(*inputs: object) -> dict[str, bytes | str]:
    """Name -> content, or the reason of the failure; fails on a name that comes twice."""
    result: dict[str, bytes | str] = {}
    for source in find_sources(list(map(str, inputs))):
        name = source.path if isinstance(source, Failure) else source.name
        assert name not in result
        result[name] = content(source)
    return result


def content(source: Source | Failure) -> bytes | str:
    if isinstance(source, Failure):
        return source.reason
    try:
        read = source.read()
    except (OSError, ImageError) as error:
        return str(error)
    assert isinstance(read, bytes)
    return read


def make_zip(path: Path, members: Mapping[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, members: Mapping[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            add(archive, name, data)
    return path


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(data))


# ---- lists and globs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"a.jpg\nb c.jpg\n",
        b"a.jpg\r\nb c.jpg",
        b"\n\na.jpg\n  \nb c.jpg\n",
        b"a.jpg\0b c.jpg\0",
        b"\xef\xbb\xbfa.jpg\nb c.jpg",
    ],
)
def test_a_list_is_one_name_a_line_or_between_nul_bytes(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "list.txt").write_bytes(text)
    assert list(read_list(tmp_path / "list.txt")) == ["a.jpg", "b c.jpg"]


def test_a_list_separated_by_nul_holds_any_name(tmp_path: Path) -> None:
    names = [b"new\nline.jpg", b"not utf-8 \xff.jpg", b" padded "]
    (tmp_path / "list").write_bytes(b"\0".join(names))
    assert [os.fsencode(name) for name in read_list(tmp_path / "list")] == names


def test_a_list_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.jpg\nb.jpg\n")))
    assert list(read_list("-")) == ["a.jpg", "b.jpg"]


def test_an_empty_or_missing_list_is_said(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"\n \n")
    with pytest.raises(DataError, match="is empty"):
        read_list(tmp_path / "list")
    with pytest.raises(DataError, match=r"cannot read the list .*No such file"):
        read_list(tmp_path / "none")


def test_globs_are_sorted_cross_folders_and_overlap_nothing(album: Path) -> None:
    (album / "deep/er").mkdir(parents=True)
    (album / "deep/er/x.png").write_bytes(png())
    assert [*found(album / "0*.png")] == [str(album / f"{n:02}.png") for n in range(10)]
    assert str(album / "deep/er/x.png") in found(album / "**/*.png")
    assert len(found(album / "0*.png", album / "*.png", album)) == 12


def test_a_file_whose_name_looks_like_a_glob_is_that_file(album: Path) -> None:
    (album / "[0].png").write_bytes(png(7))
    assert found(album / "[0].png") == {str(album / "[0].png"): png(7)}


def test_a_glob_that_matches_nothing_is_said(album: Path) -> None:
    with pytest.raises(DataError, match="nothing matches"):
        found(album, album / "*.nef")


def test_a_file_named_after_a_folder_that_may_not_be_listed_is_not_lost(
    album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refused(path: Any) -> Any:
        if Path(path) == album:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    result = found(album, album / "03.png")
    assert result[str(album)] == "Permission denied"
    assert result[str(album / "03.png")] == (album / "03.png").read_bytes()


@pytest.mark.parametrize("name", ["=1+1.png", "+1.png", "-1.png", "@x.png", "\tx.png", "\rx.png", "\nx.png", "＝1.png"])
def test_no_relative_name_is_a_formula(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(png())
    make_zip(Path(name + ".zip"), {"a.png": png()})
    assert [*found(name, name + ".zip")] == [f"./{name}", f"./{name}.zip/a.png"]
    assert Path(f"./{name}").read_bytes() == png()


# ---- archives --------------------------------------------------------------------------------------------------------

MODES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz", ".TAR": "w"}


def archive(path: Path, members: Mapping[str, bytes]) -> Path:
    mode = next((mode for suffix, mode in MODES.items() if path.name.endswith(suffix)), None)
    return make_tar(path, members, mode) if mode else make_zip(path, members)


KINDS = [".zip", *MODES]


@pytest.mark.parametrize("suffix", KINDS)
def test_an_archive_gives_its_pictures_in_its_own_order(tmp_path: Path, suffix: str) -> None:
    members = {f"deep/{n % 3}/{9 - n}.png": png(n) for n in range(9)}
    others = {"readme.txt": b"x", "__MACOSX/._1.png": b"x", ".hidden.png": b"x", "inner.zip": b"x"}
    path = archive(tmp_path / f"photos{suffix}", members | others)
    assert found(path) == {f"{path}/{name}": data for name, data in members.items()}
    assert count_sources([path]) == (9 if suffix.lower() in (".zip", ".tar") else None)


@pytest.mark.parametrize("suffix", KINDS)
def test_members_can_be_read_later_in_any_order_from_any_thread(tmp_path: Path, suffix: str) -> None:
    members = {f"{n}.png": png(n) for n in range(40)}
    sources = list(find_sources([archive(tmp_path / f"photos{suffix}", members)]))
    barrier = threading.Barrier(4)

    def read(quarter: int) -> dict[str, bytes | str]:
        barrier.wait()
        return {Path(s.name).name: content(s) for s in reversed(sources[quarter::4]) if isinstance(s, Source)}

    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(read, range(4)))
    assert {name: data for part in parts for name, data in part.items()} == members


def test_a_shard_of_web_dataset(tmp_path: Path) -> None:
    members = {f"{n:06}.{kind}": png(n) for n in range(5) for kind in ("jpg", "json", "cls", "seg.png")}
    path = make_tar(tmp_path / "shard-000000.tar", members)
    assert [*found(path)] == [f"{path}/{n:06}.{kind}" for n in range(5) for kind in ("jpg", "seg.png")]


def test_archives_in_a_folder_are_left_alone(album: Path) -> None:
    make_zip(album / "more.zip", {"x.png": png()})
    assert len(found(album)) == 11
    assert is_archive("A.ZIP")
    assert not is_archive("zip")


def test_a_picture_changed_inside_a_zip_is_another_one(tmp_path: Path) -> None:
    def marks(shade: int) -> list[tuple[int, int]]:
        path = make_zip(tmp_path / "a.zip", {"same.png": png(7), "other.png": png(shade)}, zipfile.ZIP_STORED)
        os.utime(path, (0, 0))
        return [(s.size, s.modified) for s in find_sources([path]) if isinstance(s, Source)]

    before, after = marks(1), marks(2)
    assert before[0] == after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz"])
def test_members_that_would_lead_outside_are_only_names(tmp_path: Path, suffix: str) -> None:
    names = ["../up.png", "/etc/root.png", "a/../../b.png", "C:\\x.png", "..\\y.png", "a\\.hidden.png"]
    path = archive(tmp_path / f"evil{suffix}", {name: png(index) for index, name in enumerate(names)})
    assert list(found(path).values()) == [png(index) for index in range(5)]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [path.name]


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar"])
def test_an_archive_cut_short_gives_what_it_can_and_one_failure(tmp_path: Path, suffix: str) -> None:
    noise = {f"{n}.png": os.urandom(20_000) for n in range(8)}
    path = archive(tmp_path / f"cut{suffix}", noise)
    path.write_bytes(path.read_bytes()[:90_000])
    result = found(path)
    whole = {name: data for name, data in result.items() if isinstance(data, bytes)}
    assert all(data == noise[name.rpartition("/")[2]] for name, data in whole.items())
    assert len(whole) >= (0 if suffix in (".zip", ".tar.bz2", ".tar.xz") else 3)
    reasons = [data for data in result.values() if isinstance(data, str)]
    assert reasons
    assert all(len(reason.splitlines()) == 1 for reason in reasons)


def test_a_damaged_header_in_a_tar_is_not_taken_for_its_end(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", {f"{n}.png": png(n) for n in range(4)})
    data = bytearray(path.read_bytes())
    data[2 * 1024 + 10] ^= 0xFF  # in the third header: each member takes two blocks
    path.write_bytes(data)
    result = found(path)
    assert [*result] == [f"{path}/0.png", f"{path}/1.png", str(path)]
    assert "damaged" in str(result[str(path)])
    assert "2048" in str(result[str(path)])


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x03\x04", b"\x1f\x8b\x08\0", b"\0" * 300])
def test_what_is_no_archive_is_one_failure(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    (name,), (reason,) = zip(*found(path).items(), strict=True)
    assert name == str(path)
    assert len(str(reason).splitlines()) == 1


def test_an_empty_archive_is_empty(tmp_path: Path) -> None:
    assert found(make_zip(tmp_path / "a.zip", {}), make_tar(tmp_path / "a.tar", {})) == {}


def flagged(path: Path, *, flag: int = 0, method: int | None = None) -> Path:
    """A zip whose one member claims a flag or a compression method."""
    data = bytearray(path.read_bytes())
    for signature, flags, kind in ((b"PK\x03\x04", 6, 8), (b"PK\x01\x02", 8, 10)):
        at = data.index(signature)
        data[at + flags] |= flag
        if method is not None:
            data[at + kind : at + kind + 2] = method.to_bytes(2, "little")
    path.write_bytes(data)
    return path


def test_members_that_cannot_be_unpacked_are_failures_of_their_own(tmp_path: Path) -> None:
    locked = flagged(make_zip(tmp_path / "locked.zip", {"a.png": png()}), flag=1)
    aes = flagged(make_zip(tmp_path / "aes.zip", {"a.png": png()}), method=99)
    wrong = make_zip(tmp_path / "wrong.zip", {"a.png": png(), "b.png": png(1)}, zipfile.ZIP_STORED)
    data = bytearray(wrong.read_bytes())
    data[60] ^= 1
    wrong.write_bytes(data)
    result = found(locked, aes, wrong)
    assert "password" in str(result[f"{locked}/a.png"])
    assert "compression" in str(result[f"{aes}/a.png"])
    assert "CRC" in str(result[f"{wrong}/a.png"])
    assert result[f"{wrong}/b.png"] == png(1)


def test_members_of_absurd_sizes_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as opened:
        add(opened, "good.png", png())
        add(opened, "empty.png")
        huge = tarfile.TarInfo("huge.png")
        huge.size = 2**40
        path_of_header = opened.fileobj
        assert path_of_header is not None
        path_of_header.write(huge.tobuf())
    result = found(path)
    assert result[f"{path}/good.png"] == png()
    assert "empty" in str(result[f"{path}/empty.png"])
    assert "over the limit" in str(result[f"{path}/huge.png"])


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_links_in_a_tar_are_told_and_devices_too(tmp_path: Path, mode: Any) -> None:
    path = tmp_path / ("a.tar" if mode == "w" else "a.tgz")
    with tarfile.open(path, mode) as opened:
        add(opened, "folder.png", type=tarfile.DIRTYPE)
        add(opened, "a.png", png())
        add(opened, "hard.png", type=tarfile.LNKTYPE, linkname="a.png")
        add(opened, "soft.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(opened, "pipe.png", type=tarfile.FIFOTYPE)
    result = {name.rpartition("/")[2]: data for name, data in found(path).items()}
    assert [*result] == ["a.png", "hard.png", "soft.png", "pipe.png"]
    assert result["a.png"] == png()
    assert "a link to 'a.png'" in str(result["hard.png"])
    assert "a link to '/etc/passwd'" in str(result["soft.png"])
    assert "no regular file" in str(result["pipe.png"])


def test_a_sparse_member_is_read_with_its_holes(tmp_path: Path) -> None:
    """The old GNU format: two bytes of four at offset 512 of 1024, the rest a hole."""
    member = tarfile.TarInfo("sparse.png")
    member.type = tarfile.GNUTYPE_SPARSE
    member.size = 512
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[386 : 386 + 24] = b"00000001000\0" + b"00000001000\0"  # 512 bytes at offset 512
    header[483 : 483 + 12] = b"00000002000\0"  # the real size, 1024
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(header) + b"x" * 512 + b"\0" * 1024)
    assert found(path) == {f"{path}/sparse.png": b"\0" * 512 + b"x" * 512}


def test_an_archive_replaced_while_it_is_read_gives_failures_not_other_pictures(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", {f"{n}.png": png(n) for n in range(4)})
    sources = list(find_sources([path]))
    path.write_bytes(path.read_bytes()[:1500])
    assert "ends in the middle" in str(content(sources[3]))
    path.unlink()
    assert "No such file" in str(content(sources[0]))


def test_thousands_of_members_are_not_remembered(tmp_path: Path) -> None:
    """What tarfile keeps of every member it passed would grow with the shard."""
    import tracemalloc

    path = make_tar(tmp_path / "a.tar", {f"{n:06}.png": b"x" for n in range(3000)})
    tracemalloc.start()
    try:
        peaks = []
        for limit in (300, 3000):
            tracemalloc.reset_peak()
            held = tracemalloc.get_traced_memory()[0]
            for index, _ in enumerate(find_sources([path])):
                if index == limit:
                    break
            peaks.append(tracemalloc.get_traced_memory()[1] - held)
    finally:
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_the_count_is_that_of_the_sources(album: Path, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {f"{n}.png": png(n) for n in range(4)})
    assert count_sources([album, path, album / "00.png"]) == len(found(album, path)) == 15
