"""Walking through folders: which files are images, in which order, each once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mineral_batch import DataError, Failure, Image, InputSpec, find_images, load_image

from ..conftest import encode, scene

SPEC = InputSpec(height=24, width=32, interpolation="bilinear")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(found: Any, base: Path) -> list[str]:
    return [str(path.relative_to(base)) for path in found]


def test_pictures_are_found_by_suffix_sorted_depth_first_and_hidden_ones_skipped(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a/2.png", "a/1.webp", "a/z/0.tif", "c.txt", "c.jpg.part", ".hidden.jpg", ".git/x.jpg")
    touch(tmp_path, "B.jpeg", "é.avif", "10.gif", "9.bmp", "folder.jpg/in.jpg", "noext")
    assert names(find_images([tmp_path]), tmp_path) == [
        *("10.gif", "9.bmp", "B.jpeg", "a/1.webp", "a/2.png", "a/z/0.tif", "b.JPG", "folder.jpg/in.jpg", "é.avif")
    ]


def test_a_large_folder_comes_in_order(tmp_path: Path) -> None:
    files = {f"{index}.jpg" for index in range(9000)} - {"5.jpg"} | {"5/in.jpg", "50/in.jpg", "5.jpg/in.jpg"}
    touch(tmp_path, *sorted(files, reverse=True))
    assert names(find_images([tmp_path]), tmp_path) == sorted(files, key=lambda name: name.split("/"))


def test_each_picture_comes_once_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.jpg", "a/b/2.jpg", "3.jpg")
    monkeypatch.chdir(tmp_path)
    assert list(map(str, find_images(["a", "a", "./a", "a/b", "a/1.jpg", tmp_path / "a"]))) == ["a/1.jpg", "a/b/2.jpg"]
    assert list(map(str, find_images(["a/b", "a/1.jpg", tmp_path / "a/1.jpg", "a"]))) == ["a/b/2.jpg", "a/1.jpg"]
    assert sorted(map(str, find_images([tmp_path / "3.jpg", "."]))) == [str(tmp_path / "3.jpg"), "a/1.jpg", "a/b/2.jpg"]


def test_a_file_named_directly_is_taken_whatever_its_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "scan.data", ".hidden.jpg")
    assert len(list(find_images([tmp_path / "scan.data", tmp_path / ".hidden.jpg", tmp_path]))) == 2


def test_links_to_folders_are_followed_once_and_broken_links_keep_their_row(tmp_path: Path) -> None:
    touch(tmp_path, "in/1.jpg", "elsewhere/2.jpg")
    (tmp_path / "in/back").symlink_to(tmp_path / "in")
    (tmp_path / "in/to").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "in/loop").symlink_to("loop")
    (tmp_path / "in/gone.jpg").symlink_to("nowhere")
    assert names(find_images([tmp_path / "in"]), tmp_path) == ["in/1.jpg", "in/gone.jpg", "in/loop.jpg", "in/to/2.jpg"]


def test_odd_names_are_found_and_read(tmp_path: Path, odd_names: tuple[bytes, ...]) -> None:
    content = encode(scene(), "PNG")
    for name in odd_names:
        try:
            (tmp_path / os.fsdecode(name)).write_bytes(content)
        except OSError as error:  # some file systems take UTF-8 only
            pytest.skip(f"this file system refuses {name!r}: {error}")
    found = list(find_images([tmp_path]))
    assert sorted(os.fsencode(path.name) for path in found if isinstance(path, Path)) == sorted(odd_names)
    assert all(isinstance(load_image(path, SPEC), Image) for path in found if isinstance(path, Path))


def test_a_folder_that_goes_away_is_a_failure_in_its_place(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b/1.jpg", "c.jpg")
    walk = find_images([tmp_path])
    found = [next(walk)]
    (tmp_path / "b/1.jpg").unlink()
    (tmp_path / "b").rmdir()
    found += walk
    assert [isinstance(entry, Failure) for entry in found] == [False, True, False]
    assert found[1] == Failure(str(tmp_path / "b"), "read", "No such file or directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_a_failure_in_its_place(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b/1.jpg", "c.jpg")
    (tmp_path / "b").chmod(0)
    try:
        found = list(find_images([tmp_path]))
    finally:
        (tmp_path / "b").chmod(0o700)
    assert found[1] == Failure(str(tmp_path / "b"), "read", "Permission denied")
    assert len(found) == 3


@pytest.mark.parametrize("bad", ["missing", "missing/x.jpg", "a.jpg/x", "n" * 300])
def test_an_input_that_is_not_there_is_said_before_the_first_picture(tmp_path: Path, bad: str) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    walk = find_images([tmp_path, tmp_path / bad])
    with pytest.raises(DataError) as caught:
        next(walk)
    assert str(tmp_path / bad) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
