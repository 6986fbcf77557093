"""What a stage has measured, as JSON on disk after every measurement."""

from __future__ import annotations

import json
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mineral_bench.gpu.settings import Settings

#: Keys that say how a stage ended; the process that started it writes them.
ENDINGS = ("status", "error", "log", "seconds", "gpu", "dry_run", "where", "made")


class FailuresError(Exception):
    """A measurement of a stage failed, or the output was wrong."""


class Record:
    """The measurements of one stage, written to disk after each.

    Args:
        settings: of the run.
        name: of the stage.

    Attributes:
        values: row -> result; those of an earlier attempt that was cut off are kept.
        failures: what failed this time, with the reason.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self._out, self._name = settings.out, name
        self._ending = {"status": "cut off", "dry_run": settings.sizes.dry, "where": settings.where}
        self.values = {key: value for key, value in read_record(settings.out, name).items() if key not in ENDINGS}
        self.failures: list[str] = []
        self.save()

    def save(self, **values: Any) -> None:
        """Add rows."""
        self.values.update(values)
        write_record(self._out, self._name, {**self.values, **self._ending})

    def has(self, name: str) -> bool:
        """Whether a row was measured, by this attempt or an earlier one."""
        row = self.values.get(name)
        return row is not None and not (isinstance(row, dict) and row.keys() & {"failed", "left_out"})

    def failed(self, name: str, error: BaseException, **values: Any) -> None:
        """Record that a row failed, with what is known nevertheless; the next attempt tries it again."""
        self.count_failure(name, error)
        self.save(**{name: {**values, "failed": first_line(error)}})

    def count_failure(self, name: str, error: BaseException) -> None:
        """Note a failure: the stage fails at its end, and the log has the traceback."""
        traceback.print_exception(error, limit=-4)
        self.failures.append(f"{name}: {first_line(error)}")

    def judged_by(self, comparison: str, rows: Iterable[str], stage: str = "") -> None:
        """Record which comparison tells whether the output behind some rows is right.

        Args:
            comparison: row of the comparison.
            rows: rows of this stage.
            stage: stage of the comparison; this one if empty.
        """
        judged = self.values.get("answers", {})
        self.save(answers={**judged, **{row: [stage or self._name, comparison] for row in rows}})

    def left_out(self, name: str, why: str) -> None:
        """Record that a row cannot be measured here, which is not a failure."""
        self.save(**{name: {"left_out": why}})

    def end(self, error: BaseException) -> None:
        """Record the failure of the whole stage."""
        self._ending["error"] = first_line(error)
        self.save()

    def require_success(self) -> None:
        """Raise `FailuresError` if a measurement failed."""
        if self.failures:
            raise FailuresError(f"{len(self.failures)} failed: {'; '.join(self.failures)}")


def record_path(out: Path, name: str) -> Path:
    """Return the file of a stage's record."""
    return out / "stages" / f"{name}.json"


def read_record(out: Path, name: str) -> dict[str, Any]:
    """Return a stage's record; empty if there is none."""
    try:
        found: dict[str, Any] = json.loads(record_path(out, name).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def write_record(out: Path, name: str, result: dict[str, Any]) -> None:
    """Write a record, whole or not at all."""
    target = record_path(out, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_suffix(".part")
    scratch.write_text(json.dumps(result, indent=1), "utf-8")
    scratch.replace(target)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
