"""Copies of what was named by URL take a bounded room, and never from under a run that uses them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mineral_batch.doctor import inspect_cache
from mineral_batch.errors import DataError
from mineral_batch.storage import cache

MIB = 2**20


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Four copies of a MiB that were last used 5, 4, 3 days and an hour ago; 2.5 MiB are allowed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(cache.LIMIT, str(2.5 / 1024))
    monkeypatch.setattr(cache, "_held", {})
    folders = [cache.copies_folder() / f"url{number}" / "version" for number in range(4)]
    for folder, hours in zip(folders, (120, 96, 72, 1), strict=True):
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(bytes(MIB))
        used = time.time() - 3600 * hours
        os.utime(folder, (used, used))
    return folders


def test_those_not_used_for_longest_go(copies: list[Path]) -> None:
    assert cache.prune() == 2 * MIB
    assert [folder.exists() for folder in copies] == [False, False, True, True]
    assert not copies[0].parent.exists()
    assert cache.prune() == 0


def test_what_was_used_in_the_last_day_stays(copies: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.LIMIT, "0")
    cache.prune()
    assert [folder.exists() for folder in copies] == [False, False, False, True]


@pytest.mark.skipif(sys.platform == "win32", reason="a file that is open cannot be removed there")
def test_what_a_process_uses_stays(copies: list[Path]) -> None:
    hold = f"from pathlib import Path; from mineral_batch.storage import cache; cache.hold(Path({str(copies[0])!r}))"
    old = copies[0].stat().st_mtime
    with subprocess.Popen(
        [sys.executable, "-c", f"{hold}; print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert copies[0].stat().st_mtime > old  # it is noted that it was used
        os.utime(copies[0], (old, old))
        cache.prune()
        assert [folder.exists() for folder in copies] == [True, False, False, True]
        process.communicate(b"\n", timeout=600)
    os.utime(copies[0], (old, old))
    (copies[3] / "more").write_bytes(bytes(MIB))
    cache.prune()
    assert not copies[0].exists()


def test_links_to_one_copy_count_once(copies: list[Path]) -> None:
    (copies[3] / "again").hardlink_to(copies[2] / "model.onnx")
    assert cache.size(cache.copies_folder()) == 4 * MIB


def test_the_doctor_says_where_and_how_much(copies: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (cache.copies_folder().parent / "engines").mkdir()
    (cache.copies_folder().parent / "engines/a.plan").write_bytes(bytes(MIB))
    found = inspect_cache()
    assert (found.copies, found.others, found.most_copies) == (4 * MIB, MIB, int(2.5 * MIB))
    assert found.folder == str(cache.copies_folder().parent)
    monkeypatch.setenv(cache.LIMIT, "much")
    with pytest.raises(DataError, match="MINERAL_BATCH_CACHE_GIB is 'much': it must be a number of GiB, such as 20"):
        inspect_cache()
