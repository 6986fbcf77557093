"""Files and folders appear whole or not at all; what the system refuses is one line with the fix."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mineral_batch import DataError
from mineral_batch.files import atomic_file, atomic_folder, cannot_write, remove_leftovers, write_errors, write_file


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a") as file:
        file.write(b"new")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"new"
    assert listing(tmp_path) == ["a"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def interrupted() -> None:
        with atomic_file(tmp_path / "a") as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert listing(tmp_path) == ["a"]


@pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")
def test_permissions_and_links_stay(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    write_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with atomic_folder(tmp_path / "f") as folder:
            (folder / content).touch()
        assert listing(tmp_path / "f") == [content]
    with pytest.raises(ValueError, match="no"), atomic_folder(tmp_path / "f"):
        raise ValueError("no")
    assert listing(tmp_path) == ["f"]
    assert listing(tmp_path / "f") == ["two"]


def test_leftovers_of_a_kill_are_removed_and_the_old_folder_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".f.12ab34cd.part").mkdir()
    (tmp_path / ".f.old").mkdir()
    (tmp_path / ".f.old/kept").touch()
    (tmp_path / ".g.12ab34cd.part").touch()
    remove_leftovers(tmp_path / "f")
    assert listing(tmp_path) == [".g.12ab34cd.part", "f"]
    assert listing(tmp_path / "f") == ["kept"]


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EFBIG, "raise the limit"),
        (errno.ENOENT, "create the folder first"),
        (errno.EISDIR, "name a file"),
        (errno.EACCES, "choose a place that you may write to"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_the_fix(code: int, fix: str) -> None:
    message = str(cannot_write("results/a.csv", OSError(code, os.strerror(code))))
    assert message.startswith(f"cannot write results/a.csv: {os.strerror(code)}; ")
    assert fix in message


def test_the_message_names_the_target_and_not_the_temporary_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="create the folder first") as caught, write_errors(tmp_path / "no/a"):
        write_file(tmp_path / "no/a", b"")
    assert ".part" not in str(caught.value)


def test_a_name_of_the_greatest_length_can_be_written(tmp_path: Path) -> None:
    """A temporary file beside it needs a name, too."""
    path = tmp_path / ("ы" * 127)
    write_file(path, "one")
    write_file(path, "two")
    assert path.read_text() == "two"
    (tmp_path / f".{'x' * 240}.0123abcd.part").touch()
    remove_leftovers(tmp_path / ("x" * 240))
    assert list(tmp_path.iterdir()) == [path]
