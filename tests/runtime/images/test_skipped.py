"""What is found beside the images and not read, and what of a folder is no photo at all."""

from __future__ import annotations

import io
import os
import re
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mineral_batch import Failure
from mineral_batch.errors import DataError, ImageError
from mineral_batch.images import names as names_module
from mineral_batch.images.discover import find_images, find_sources
from mineral_batch.images.lists import read_list
from mineral_batch.images.skipped import Skipped
from mineral_batch.types import Source

from ..conftest import encode, scene

if TYPE_CHECKING:
    from collections.abc import Iterator

PNG = encode(scene(9, 7), "PNG")


def touch(folder: Path, *names: str, content: bytes = PNG) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def found(*inputs: object, skipped: Skipped | None = None) -> list[str]:
    sources = find_sources(list(inputs), skipped)  # type: ignore[arg-type]
    return [source.path if isinstance(source, Failure) else source.name for source in sources]


@pytest.fixture
def no_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "_is_installed", lambda package: False)


@pytest.mark.usefixtures("no_extras")
def test_what_is_not_read_is_counted_with_what_to_do(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.j2k", "c.pnm", "x.CR2", "y.CR2", "z.NEF", "w.jxl", "in/more.zip", "old.7z")
    touch(tmp_path, "noext", "a.jpg?v=2", "b.jpg_large", "notes.txt", ".hidden", "movie.mp4")
    touch(tmp_path, "text", content=b"no image")
    skipped = Skipped()
    assert [Path(name).name for name in found(tmp_path, skipped=skipped)] == ["a.jpg", "b.j2k", "c.pnm"]
    line = skipped.line()
    assert re.match(r"Not read: 2 \.CR2 \(camera raw: pip install .*\[raw\]'\), ", line)
    for part in (
        "1 .NEF (camera raw",
        "1 .jxl (JPEG XL: pip install",
        "1 .zip (name them to open them)",
        "1 .7z (unpack",
    ):
        assert part in line
    assert "1 .jpg?v=2 (name them, or rename them)" in line
    assert "1 file without suffix" in line
    assert not re.search(r"\d \.txt", line)
    record = skipped.record()
    assert record["files"] == {
        ".7z": 1, ".CR2": 2, ".NEF": 1, ".jpg?v=2": 1, ".jpg_large": 1, ".jxl": 1, ".zip": 1, "files without suffix": 1
    }  # fmt: skip
    assert record["other"] == 3, "notes.txt, movie.mp4 and text"


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_what_is_not_read_in_an_archive_is_counted_too(tmp_path: Path, kind: str) -> None:
    tree = tmp_path / "tree"
    for name in ("a.png", "more.zip", "b.jpg_large", "notes.txt", "__init__", ".hidden.zip"):
        touch(tree, name, content=PNG)
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(tree.iterdir()):
                archive.write(file, file.name)
    else:
        with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as packed:
            packed.add(tree, "tree")
    skipped = Skipped()
    assert len(list(find_sources([path], skipped))) == 1
    assert skipped.line() == "Not read: 1 .jpg_large (rename them), 1 .zip (unpack them)"
    assert skipped.other == 2


def test_with_its_package_camera_raw_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "_is_installed", lambda package: True)
    touch(tmp_path, "a.jpg", "x.CR2", "w.jxl")
    skipped = Skipped()
    assert len(found(tmp_path, skipped=skipped)) == 3
    assert skipped.line() == ""


def test_our_own_output_and_system_folders_are_not_entered(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.jpg",
        "explained/overlays/a.png",
        "explained/maps/a.npz",
        "report/thumbs/0.jpg",
        "report/maps/0.jpg",
    )
    touch(tmp_path, "report/data/0.js", "explained/maps.csv", "report/index.html", content=b"x")
    touch(tmp_path, "@eaDir/a.jpg", "#recycle/b.jpg", "$RECYCLE.BIN/c.jpg", "__MACOSX/d.jpg", ".thumbnails/e.jpg")
    touch(tmp_path, "maps/mine.jpg", "thumbs/mine.jpg")
    skipped = Skipped()
    assert [str(Path(name).relative_to(tmp_path)) for name in found(tmp_path, skipped=skipped)] == [
        "a.jpg", "maps/mine.jpg", "thumbs/mine.jpg"
    ]  # fmt: skip
    assert "1 overlays folder" in skipped.line()
    assert "1 @eaDir folder" in skipped.line()
    assert found(tmp_path / "explained/overlays") == [str(tmp_path / "explained/overlays/a.png")], "if it is named"


def test_folders_that_report_the_same_inode_are_all_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcd":
        touch(tmp_path, f"{name}/1.png")
    stat = os.stat

    def same(path: Any, *args: Any, **options: Any) -> os.stat_result:
        values = list(stat(path, *args, **options))
        values[1] = 0
        return os.stat_result(values)

    monkeypatch.setattr(os, "stat", same)
    assert len(list(find_images([tmp_path]))) == 4


DEPTH = 1200


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A folder with an image 1,200 folders down. It is removed here: pytest's own way of it recurses."""
    base = Path.cwd()
    os.chdir(tmp_path)
    for _ in range(DEPTH):
        Path("d").mkdir()
        os.chdir("d")
    Path("deep.png").write_bytes(PNG)
    os.chdir(base)
    yield tmp_path
    os.chdir(tmp_path)
    for _ in range(DEPTH):
        os.chdir("d")
    Path("deep.png").unlink()
    for _ in range(DEPTH):
        os.chdir("..")
        Path("d").rmdir()
    os.chdir(base)


def test_a_folder_1200_deep_and_a_time_far_in_the_future_end_no_run(deep: Path) -> None:
    touch(deep, "late.png")
    os.utime(deep / "late.png", (13_569_465_600, 13_569_465_600))  # the year 2400
    sources = list(find_sources([deep]))
    assert len(sources) == 2
    late = next(source for source in sources if isinstance(source, Source) and source.name.endswith("late.png"))
    assert -(2**63) <= late.modified < 2**63


# ---- names ---------------------------------------------------------------------------------------------------------


def test_a_folder_that_exists_is_not_read_as_a_glob(tmp_path: Path) -> None:
    touch(tmp_path, "set1/other.jpg", "set[1]/mine.jpg", "set[1]/x.png")
    assert found(tmp_path / "set[1]/*.jpg") == [str(tmp_path / "set[1]/mine.jpg")]
    assert found(tmp_path / "set[1]") == [str(tmp_path / "set[1]/mine.jpg"), str(tmp_path / "set[1]/x.png")]
    assert found(tmp_path / "set[0-9]/*.jpg") == [str(tmp_path / "set1/other.jpg")]


def test_the_lines_of_a_list_are_taken_literally(tmp_path: Path) -> None:
    touch(tmp_path, "a1.png", "list.txt")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/a[1].png\n")
    (name,) = read_list(tmp_path / "list.txt")
    with pytest.raises(Exception, match="no such file or folder"):
        found(name)
    touch(tmp_path, "a[1].png")
    assert found(name) == [str(tmp_path / "a[1].png")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-8-sig", "utf-8"])
def test_a_list_from_powershell_is_read(tmp_path: Path, encoding: str) -> None:
    text = "a.jpg\r\nünï.jpg\r\n"
    (tmp_path / "list.txt").write_bytes((b"\xfe\xff" if encoding == "utf-16-be" else b"") + text.encode(encoding))
    assert list(read_list(tmp_path / "list.txt")) == ["a.jpg", "ünï.jpg"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_refused_and_not_split_into_letters(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "list.txt").write_bytes("photos/a.jpg\r\n".encode(encoding))
    with pytest.raises(DataError, match="UTF-16 without a byte order mark: save it as UTF-8"):
        read_list(tmp_path / "list.txt")


def test_names_of_a_letter_or_two_may_end_with_zeros(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"0\x001\x002\0cc\0d\0.\0")
    assert list(read_list(tmp_path / "list.txt")) == ["0", "1", "2", "cc", "d", "."]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_without_a_suffix_does_not_hold_up_the_walk(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe")
    skipped = Skipped()
    assert [Path(one.name).name for one in find_sources([tmp_path], skipped)] == ["a.png"]
    assert skipped.other == 1


# ---- archives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "mode"), [(".tbz2", "w:bz2"), (".txz", "w:xz"), (".tbz", "w:bz2")])
def test_short_suffixes_of_archives_are_known(tmp_path: Path, suffix: str, mode: Any) -> None:
    with tarfile.open(tmp_path / f"a{suffix}", mode) as archive:
        member = tarfile.TarInfo("1.png")
        member.size = len(PNG)
        archive.addfile(member, io.BytesIO(PNG))
    assert found(tmp_path / f"a{suffix}") == [str(tmp_path / f"a{suffix}/1.png")]


@pytest.mark.parametrize("name", ["a.7z", "a.rar", "a.tar.zst"])
def test_other_archives_say_what_to_do(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, content=b"x")
    (failure,) = find_sources([tmp_path / name])
    assert isinstance(failure, Failure)
    assert "archives are not opened: unpack it" in failure.reason


def test_of_a_name_twice_in_a_tar_the_last_counts(tmp_path: Path) -> None:
    versions = [PNG, encode(scene(9, 7, seed=3), "PNG")]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for content in versions:
            for name in ("same.png", f"{len(content)}.png"):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    sources = [source for source in find_sources([tmp_path / "a.tar"]) if isinstance(source, Source)]
    assert len(sources) == 3
    (same,) = [source for source in sources if source.name.endswith("same.png")]
    assert same.read() == versions[1]


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.bz2", ".tar.xz"])
def test_a_name_that_comes_again_in_a_compressed_tar_is_a_failure(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with tarfile.open(path, f"w:{suffix.rpartition('.')[2]}") as archive:
        for name in ("same.png", "other.png", "same.png", "same.png"):
            member = tarfile.TarInfo(name)
            member.size = len(PNG)
            archive.addfile(member, io.BytesIO(PNG))
    found = list(find_sources([path]))
    assert [source.name for source in found if isinstance(source, Source)] == [f"{path}/same.png", f"{path}/other.png"]
    failures = [failure for failure in found if isinstance(failure, Failure)]
    assert [failure.path for failure in failures] == [f"{path}/same.png (2)", f"{path}/same.png (3)"]
    assert {failure.stage for failure in failures} == {"read"}
    assert "a later version of an image above, not read" in failures[0].reason


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_a_name_twice_in_a_zip_the_last_counts(tmp_path: Path) -> None:
    last = encode(scene(9, 7, seed=3), "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for content in (PNG, last):
            archive.writestr("same.png", content)
    (source,) = find_sources([tmp_path / "a.zip"])
    assert isinstance(source, Source)
    assert source.read() == last


def test_one_bad_name_in_a_zip_costs_no_other_image(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("1.png", "ümlaut.png", "2.png"):
            archive.writestr(name, PNG)
    data = path.read_bytes().replace("ümlaut".encode(), b"\xff\xfemlaut"[:7])
    path.write_bytes(data)
    sources = [source for source in find_sources([path]) if isinstance(source, Source)]
    assert len(sources) == 3
    assert all(source.read() == PNG for source in sources)


def test_an_encrypted_member_is_said_to_be_encrypted(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.png", PNG)
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    (source,) = find_sources([path])
    assert isinstance(source, Source)
    with pytest.raises(OSError, match="encrypted: unpack the archive with its password"):
        source.read()


@pytest.mark.parametrize("suffix", [".zip", ".tgz"])
def test_a_large_member_that_is_no_image_is_not_unpacked(tmp_path: Path, suffix: str) -> None:
    size = 17 * 2**20
    large = encode(scene(2500, 2400), "BMP")
    assert len(large) > size
    members = {"zeros.jpg": bytes(size), "large.bmp": large}
    if suffix == ".zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(tmp_path / "a.tgz", "w:gz") as packed:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                packed.addfile(member, io.BytesIO(content))
    reasons, contents = [], []
    for source in find_sources([tmp_path / f"a{suffix}"]):
        try:
            contents.append(source.read() if isinstance(source, Source) else reasons.append(source.reason))
        except ImageError as error:
            reasons.append(str(error))
    assert reasons == ["not an image, or in a format that is not supported"]
    assert large in contents
