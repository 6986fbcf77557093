"""What `mineral-batch predict` was asked for, whether it runs into a folder or in pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mineral_batch.cli.logs import Log
from mineral_batch.images.lists import NameList
from mineral_batch.results.write import Tables


@dataclass(frozen=True)
class Asked:
    """The options that both kinds of run have.

    Attributes:
        named: the inputs.
        output: folder or URL.
        tables: what is wanted of the images, and the tables of it.
        log: gets lines and events.
        log_every: seconds between two lines of progress where there is no terminal.
        quiet: no bar and no closing lines.
        options: as given on the command line, for run.json.
        restart: discard earlier results.
        prune: remove the rows of images that are not among the inputs.
        exit_zero_on_failures: images that cannot be read do not change the exit code.
    """

    named: Sequence[str | Path | NameList]
    output: Path
    tables: Tables
    log: Log
    log_every: float
    quiet: bool
    options: Mapping[str, Any]
    restart: bool
    prune: bool
    exit_zero_on_failures: bool
