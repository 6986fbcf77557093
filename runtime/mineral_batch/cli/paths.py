"""The types of parameters that are paths or URLs: pathlib would take one of a URL's slashes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from mineral_batch.errors import DataError
from mineral_batch.results.schema import FAILURES, PARTIAL, PREDICTIONS, RUN_MANIFEST
from mineral_batch.storage.models import fetch, fetch_folder, is_copy
from mineral_batch.storage.urls import is_url, local_path, redact, restored

T = TypeVar("T")


class _PathType(click.ParamType[T]):
    """A type that a shell completes with the names of files."""

    name = "path"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the one item that stands for files and folders."""
        return click.Path().shell_complete(ctx, param, incomplete)


class PathOrUrl(_PathType[Path | str]):
    """A path, or the text of a URL as it was written."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """Return a `Path`, or a URL's text."""
        del param, ctx
        return value if isinstance(value, Path) or is_url(value) else Path(value)


class FetchedBy(_PathType[Path]):
    """What is read: a path, or a URL whose content is copied into the user's cache.

    Args:
        fetch: makes the path on this machine of either.
    """

    def __init__(self, fetch: Callable[[str], Path]) -> None:
        self._fetch = fetch

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path on this machine."""
        del param
        return Path(value) if ctx is not None and ctx.resilient_parsing else self._fetch(value)


class LocalPath(_PathType[Path]):
    """A path on this machine; a URL is refused, for a folder called `s3:` is not what was meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return a `Path`."""
        _refuse_url(self, value, param, ctx)
        return local_path(value) or Path(value)


class LocalText(_PathType[str]):
    """A word, a rule, or a path on this machine; a URL is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        _refuse_url(self, value, param, ctx)
        return str(value)


def _refuse_url(
    kind: click.ParamType[Any], value: Any, param: click.Parameter | None, ctx: click.Context | None
) -> None:
    if is_url(value) and local_path(value) is None:
        kind.fail(f"{redact(restored(value))} is a URL: name a file or folder on this machine", param, ctx)


#: What every command's parameters that are paths are of: never `click.Path`, which makes a folder `s3:` of a URL.
INPUT, FETCHED, LOCAL, LOCAL_TEXT = PathOrUrl(), FetchedBy(fetch), LocalPath(), LocalText()
#: The output folder of a run, whose tables are copied.
RESULTS = FetchedBy(partial(fetch_folder, files=[PREDICTIONS, RUN_MANIFEST], optional=[FAILURES]))


def require_output(given: Path, output: Path | None, default: Path, parameter: str = "MODEL") -> Path:
    """Return where a command writes: `output`, or by default beside what it reads.

    Raises:
        click.UsageError: if there is no `output`, and what is read is a copy of what a URL names.
    """
    if output is None and is_copy(given):
        raise click.UsageError(f"{parameter} is a URL: name the file to write with -o")
    return output or default


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
