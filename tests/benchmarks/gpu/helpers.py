"""What several tests of the GPU run need."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

from mineral_bench.gpu.settings import TINY, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def make_settings(tmp_path: Path, **changes: Any) -> Settings:
    given: dict[str, Any] = {"out": tmp_path / "out", "wheels": None, "photos": None, "sizes": TINY}
    return Settings(**(given | changes))


def write_wheel(path: Path, files: Mapping[str, str | bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
