"""Progress of a run: a bar on a terminal, a line now and then in a log. It may fail; the run may not."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TextIO

from tqdm import tqdm

from mineral_batch.cli.console import say
from mineral_batch.errors import MineralError
from mineral_batch.images.discover import count_sources
from mineral_batch.images.lists import NameList
from mineral_batch.types import Failure, Result


class Progress:
    """Counts results and shows them: as a bar where standard error is a terminal, as lines where it is not.

    The total comes from a second walk beside the run, so that the first batch need not wait for it.

    Args:
        inputs: of the run; those that exist.
        log_every: seconds between two lines where there is no terminal.
        quiet: show nothing, only count.
        total: number of images, where it is known; they are not counted then.
        log: takes the progress as numbers, instead of a line in words.
    """

    def __init__(
        self,
        inputs: Sequence[str | Path | NameList],
        log_every: float,
        quiet: bool,
        *,
        total: int | None = None,
        log: Callable[[dict[str, Any]], object] | None = None,
    ) -> None:
        self._log_every, self._log = log_every, log
        self._total = total
        self._new = self._reused = self._failed = 0
        self._started = self._logged = time.monotonic()
        self._bar = progress_bar(quiet or log is not None)
        self._bar.total = total
        self._is_log = self._bar.disable and (log is not None or not quiet)
        if total is None and not quiet:
            threading.Thread(target=self._count, args=(inputs,), daemon=True, name="count").start()

    def _count(self, inputs: Sequence[str | Path | NameList]) -> None:
        # The run itself reports what is wrong with the inputs.
        with suppress(MineralError, OSError):
            self._total = self._bar.total = count_sources(inputs)

    def __call__(self, result: Result | None) -> None:
        """Count a new result, or None for one that an earlier run had."""
        if result is None:
            self.count(reused=1)
        else:
            self.count(new=1, failed=int(isinstance(result, Failure)))

    def count(self, *, new: int = 0, failed: int = 0, reused: int = 0) -> None:
        """Count many results: new ones, how many of them failed, and those that an earlier run had."""
        self._new += new
        self._reused += reused
        self._failed += failed
        if not self._bar.disable:
            self._advance(new, reused)
        elif self._is_log and time.monotonic() - self._logged >= self._log_every:
            self._logged = time.monotonic()
            if self._log is not None:
                self._log(self.numbers())
                return
            say(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {self.line()}", err=True)

    def _advance(self, new: int, reused: int) -> None:
        counts = {"failed": self._failed, "from earlier": self._reused}
        self._bar.set_postfix({name: n for name, n in counts.items() if n}, refresh=False)
        # Those of an earlier run count as done, but must not flatter the rate.
        self._bar.initial += reused
        self._bar.n += reused
        if new:
            self._bar.update(new)

    def numbers(self) -> dict[str, Any]:
        """Return the progress as numbers."""
        seconds = time.monotonic() - self._started
        return {
            "done": self._new + self._reused,
            "total": self._total,
            "failed": self._failed,
            "from_earlier": self._reused,
            "images_per_second": round(self._new / max(seconds, 1e-9), 2),
        }

    def line(self) -> str:
        """Return the progress in words."""
        done, rate = self._new + self._reused, self._new / max(time.monotonic() - self._started, 1e-9)
        parts = [f"{done} of {self._total} images" if self._total else f"{done} images", f"{rate:.1f} images/s"]
        if self._total and rate:
            parts.append(f"{tqdm.format_interval(max(0, self._total - done) / rate)} left")
        parts += [f"{n} {what}" for n, what in ((self._failed, "failed"), (self._reused, "from earlier runs")) if n]
        return ", ".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def progress_bar(quiet: bool) -> tqdm[None]:
    """Return a bar on standard error if that is a terminal; one that shows nothing otherwise."""
    return tqdm(unit=" images", disable=True if quiet else None, dynamic_ncols=True, file=_SafeStream(sys.stderr))


class _SafeStream:
    """A text stream whose failures (a full disk, a closed descriptor) are ignored."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError, AttributeError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            self._stream.flush()

    def isatty(self) -> bool:
        with suppress(OSError, ValueError, AttributeError):
            return bool(self._stream.isatty())
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
