"""The folder of engines: a cached engine is code, so nobody else may write to it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mineral_batch.engines.cache import make_folder
from mineral_batch.errors import BackendError

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_folder_is_private_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        make_folder(tmp_path / "engines")
    finally:
        os.umask(old)
    assert mode(tmp_path / "engines") == 0o700


def test_the_group_loses_its_right_to_write(tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines").chmod(0o775)
    make_folder(tmp_path / "engines")
    assert mode(tmp_path / "engines") == 0o755


def test_a_folder_that_everybody_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines").chmod(0o777)
    with pytest.raises(BackendError, match="everybody may write to the cache"):
        make_folder(tmp_path / "engines")


def test_a_folder_of_another_user_is_refused_unless_root_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "engines").mkdir()
    owner = (tmp_path / "engines").stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(BackendError, match="belongs to another user"):
        make_folder(tmp_path / "engines")
    monkeypatch.setattr(os, "getuid", lambda: 0)
    make_folder(tmp_path / "engines")
