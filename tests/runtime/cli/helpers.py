"""What the tests of commands read of their output."""

from __future__ import annotations

import csv
from pathlib import Path

from click.testing import Result


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def assert_one_line_error(result: Result, *said: str) -> None:
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert all(words in lines[0] for words in said), lines[0]
