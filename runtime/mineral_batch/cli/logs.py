"""`--log-format json`: what a run does as one JSON object per line, for collectors of logs."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from mineral_batch.cli.console import say
from mineral_batch.cluster.work import PieceReport
from mineral_batch.results.attempt import RunSummary
from mineral_batch.results.manifest import timestamp
from mineral_batch.results.schema import RUN_MANIFEST

LOG_FORMATS = ("text", "json")


class Log:
    """Writes events to standard error as JSON; does nothing where the format is text.

    Args:
        log_format: of `LOG_FORMATS`.
    """

    def __init__(self, log_format: str) -> None:
        self.is_json = log_format == "json"
        #: For `mineral_batch.cli.progress.Progress`; None where lines are in words.
        self.progress = self._progress if self.is_json else None

    def event(self, name: str, **values: Any) -> None:
        """Write one event with its time, in UTC; numbers to a thousandth."""
        if self.is_json:
            short = {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}
            say(json.dumps({"time": timestamp(), "event": name, **short}), err=True)

    def line(self, text: str) -> None:
        """Write a line for people to standard error; as JSON an event `message`, so that every line is an object."""
        if self.is_json:
            self.event("message", text=text)
        else:
            say(text, err=True)

    def _progress(self, numbers: dict[str, Any]) -> None:
        self.event("progress", **numbers)

    def piece(self, report: PieceReport) -> None:
        """Write what became of a piece: counts, rate, failures, seconds of each stage."""
        self.event("piece", **report.record())

    def run_finished(self, summary: RunSummary, folder: Path) -> None:
        """Write the counts of a run on this machine, and the seconds of each stage from its run.json."""
        if not self.is_json:
            return
        stages: dict[str, Any] = {}
        with suppress(OSError, ValueError, KeyError):
            stages = json.loads((folder / RUN_MANIFEST).read_text("utf-8"))["stage_seconds"]
        rate = round(summary.new / summary.seconds, 2) if summary.seconds else None
        self.event(
            "run",
            predicted=summary.predicted,
            failed=summary.failed,
            new=summary.new,
            seconds=round(summary.seconds, 3),
            images_per_second=rate,
            stages=stages,
        )
