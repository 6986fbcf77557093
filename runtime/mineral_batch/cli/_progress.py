"""How a run tells where it is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

import click
from tqdm import tqdm

from mineral_batch.errors import MineralError
from mineral_batch.images.discover import count_sources
from mineral_batch.types import Failure, labels_present

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Result

_STDERR = 2


class Progress:
    """Counts results and shows them: as a bar where standard error is a terminal, as lines where it is not.

    The total comes from a second walk beside the run, so that the first batch need not wait for it.

    Args:
        inputs: of the run.
        contract: the model's.
        log_every: seconds between two lines where there is no terminal.
        quiet: show nothing, only count.
    """

    def __init__(self, inputs: Sequence[Path], contract: ModelContract, log_every: float, quiet: bool) -> None:
        self.minerals: Counter[str] = Counter()
        self._contract = contract
        self._log_every = log_every
        self._total: int | None = None
        self._new = self._reused = self._failed = 0
        self._started = self._told = time.monotonic()
        self._bar: tqdm[None] = tqdm(unit=" pictures", disable=True if quiet else None, dynamic_ncols=True)
        self._is_log = self._bar.disable and not quiet
        if not quiet:
            threading.Thread(target=self._count, args=(inputs,), daemon=True, name="count").start()

    def _count(self, inputs: Sequence[Path]) -> None:
        # What is wrong with the inputs the run itself says.
        with suppress(MineralError, OSError):
            self._total = self._bar.total = count_sources(inputs)

    def __call__(self, result: Result | None) -> None:
        """Take a new result, or None for one that an earlier run had."""
        self._new += result is not None
        self._reused += result is None
        if isinstance(result, Failure):
            self._failed += 1
        elif result is not None:
            self.minerals.update(
                labels_present(result.probabilities.tolist(), self._contract.labels, self._contract.thresholds)
            )
        if not self._bar.disable:
            self._advance(is_new=result is not None)
        elif self._is_log and time.monotonic() - self._told >= self._log_every:
            self._told = time.monotonic()
            click.echo(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {self.line()}", err=True)

    def _advance(self, *, is_new: bool) -> None:
        counts = {"failed": self._failed, "from earlier": self._reused}
        self._bar.set_postfix({name: n for name, n in counts.items() if n}, refresh=False)
        if is_new:
            self._bar.update()
        else:  # it counts as done, but must not flatter the rate
            self._bar.initial += 1
            self._bar.n += 1

    def line(self) -> str:
        """Where the run is, in words."""
        done, rate = self._new + self._reused, self._new / max(time.monotonic() - self._started, 1e-9)
        parts = [f"{done} of {self._total} pictures" if self._total else f"{done} pictures", f"{rate:.1f} a second"]
        if self._total and rate:
            parts.append(f"{tqdm.format_interval(max(0, self._total - done) / rate)} left")
        parts += [f"{n} {what}" for n, what in ((self._failed, "failed"), (self._reused, "from earlier runs")) if n]
        return ", ".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


class Stop:
    """The first Ctrl-C (or SIGTERM) asks a run to finish what it has begun, the second ends it at once.

    Attributes:
        signal: the signal that came, None as long as none did.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether a stop is asked for."""
        return self.signal is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        # Not print: a signal may arrive in the middle of one.
        with suppress(OSError):
            os.write(_STDERR, b"\nfinishing the pictures in flight; once more to stop at once\n")
