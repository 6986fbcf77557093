"""The types of parameters that are paths or URLs: pathlib would take one of a URL's slashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mineral_batch.errors import DataError
from mineral_batch.results.schema import FAILURES, PARTIAL, PREDICTIONS, RUN_MANIFEST
from mineral_batch.storage.models import fetch, fetch_folder
from mineral_batch.storage.urls import is_url, redact, restored


class PathOrUrl(click.ParamType[Path | str]):
    """A path, or the text of a URL as it was written."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """Return a `Path`, or a URL's text."""
        del param, ctx
        return value if isinstance(value, Path) or is_url(value) else Path(value)


class Fetched(click.ParamType[Path]):
    """A file that is read: a path, or a URL whose content is copied into the user's cache."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path of the file on this machine."""
        if ctx is not None and ctx.resilient_parsing:
            return Path(value)
        del param
        return fetch(value)


class LocalPath(click.ParamType[Path]):
    """A path on this machine; a URL is refused, for a folder called `s3:` is not what was meant."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return a `Path`."""
        if is_url(value):
            self.fail(f"{redact(restored(value))} is a URL: name a file or folder on this machine", param, ctx)
        return Path(value)


class FetchedResults(click.ParamType[Path]):
    """The output folder of a run: a path, or a URL whose tables are copied into the user's cache."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path of the folder on this machine."""
        if ctx is not None and ctx.resilient_parsing:
            return Path(value)
        del param
        return fetch_folder(value, [PREDICTIONS, RUN_MANIFEST], optional=[FAILURES])


INPUT, MODEL, LOCAL, RESULTS = PathOrUrl(), Fetched(), LocalPath(), FetchedResults()


def refuse_swapped(command: str, labels: Path, results: Path) -> None:
    """Refuse the output folder of `predict` where a table of labels belongs: the two arguments were swapped.

    Args:
        command: that has these two arguments, in one order or the other.
        labels: what stands where the table belongs.
        results: what stands where the folder belongs.

    Raises:
        DataError: with the command in the right order.
    """
    if labels.is_dir() and any((labels / name).is_file() for name in (PREDICTIONS, PARTIAL)):
        order = (labels, results) if command == "evaluate" else (results, labels)
        raise DataError(
            f"{labels} is the output folder of predict, not a table of labels; in the right order: "
            f"mineral-batch {command} {order[0]} {order[1]}"
        )
