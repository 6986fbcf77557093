"""What commands that read a run's tables say if somebody has edited them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mineral_batch.cli.console import say
from mineral_batch.explain.folder import INDEX
from mineral_batch.results.written import edited_tables, is_edited

if TYPE_CHECKING:
    from pathlib import Path


def say_edited(results: Path, what: str) -> None:
    """Say which tables were changed since a run wrote them, by hand or by another program, and are used as they are.

    Args:
        results: the output folder, or one of its tables.
        what: becomes of them, for the end of the line.
    """
    folder = results if results.is_dir() else results.parent
    for name in edited_tables(folder):
        if folder == results or name == results.name:
            say(f"Note: {folder / name} was edited since the run wrote it; {what}", err=True)


def say_edited_maps(folder: Path, what: str) -> None:
    """Say if the index of a folder of `explain` was changed since it was written, and is used as it is."""
    if is_edited(folder, folder / INDEX):
        say(f"Note: {folder / INDEX} was edited since explain wrote it; {what}", err=True)
