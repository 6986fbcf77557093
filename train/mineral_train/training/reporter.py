"""What a running `fit` shows: a bar on a terminal, a line now and then elsewhere, and how long it will take."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from tqdm import tqdm

from mineral_train.training.config import RunOptions, TrainConfig
from mineral_train.training.distributed import Process
from mineral_train.training.logs import peak_memory

_SHOW_EVERY = 10  # steps: reading the loss from a GPU makes it wait
_LINE_EVERY = 30.0  # seconds between two lines where there is no terminal
_TIMED_STEPS = 4  # after the first, which is slower
_VALIDATION_COST = 1 / 3  # of an image's training cost: forward only
_LONG = 3600.0


class Reporter:
    """Shows the progress of one process's steps, and once in a sitting the estimate.

    Args:
        config: the recipe.
        options: whether to be quiet.
        process: only the main one shows anything.
        images: how many images are trained on and validated on.
        steps: optimizer steps per epoch.
        say: called with lines for the user.
        suggest: gives the hint for a run that takes long; called at most once.
    """

    def __init__(
        self,
        config: TrainConfig,
        options: RunOptions,
        process: Process,
        images: tuple[int, int],
        steps: int,
        say: Callable[[str], None],
        suggest: Callable[[], str],
    ) -> None:
        self._config, self._process = config, process
        self._train_images, self._val_images = images
        self._steps = steps
        self._say = say
        self._suggest = suggest
        self._silent = options.quiet or not process.main
        self._bar = not self._silent and sys.stderr.isatty()
        self._durations: list[float] = []
        self._estimated = False
        self._last_line = time.monotonic()

    def steps(self, epoch: int, first: int, best_map: float, loss_sum: torch.Tensor) -> Iterator[int]:
        """Give the numbers of the epoch's steps from `first`, showing how far it is and the mean loss so far."""
        best = f", best mAP {100 * best_map:.2f}%" if best_map >= 0 else ""
        title = f"epoch {epoch}/{self._config.epochs}{best}"
        with tqdm(total=self._steps, initial=first, desc=title, disable=not self._bar, leave=False, unit="step") as bar:
            for number in range(first, self._steps):
                start = time.perf_counter()
                yield number
                self._durations = [*self._durations, time.perf_counter() - start][-_SHOW_EVERY:]
                bar.update()
                self._estimate(epoch, number + 1)
                self._show(bar, epoch, number + 1, loss_sum)

    def _show(self, bar: tqdm[None], epoch: int, done: int, loss_sum: torch.Tensor) -> None:
        seen = min(done * self._config.batch, self._train_images) / self._process.world
        if self._bar and done % _SHOW_EVERY == 0:
            bar.set_postfix(loss=f"{float(loss_sum) / seen:.4f}")
        if not self._bar and not self._silent and time.monotonic() - self._last_line >= _LINE_EVERY:
            self._last_line = time.monotonic()
            pace = statistics.median(self._durations)
            self._say(
                f"Epoch {epoch}/{self._config.epochs}, step {done}/{self._steps}: loss {float(loss_sum) / seen:.4f}, "
                f"{pace:.2g} s per step, {duration((self._steps - done) * pace)} left in this epoch"
            )

    def _estimate(self, epoch: int, done: int) -> None:
        """Say once how long the run will take and how much memory it holds; warn if that is long."""
        if self._estimated or len(self._durations) <= _TIMED_STEPS:
            return
        self._estimated = True
        pace = statistics.median(self._durations[1:])
        validation = pace / self._config.batch * self._val_images * _VALIDATION_COST
        epochs = self._config.epochs - epoch + 1
        seconds = epochs * (self._steps * pace + validation) - done * pace
        self._say(
            f"Estimate: {duration(seconds)} for {'this epoch' if epochs == 1 else f'{epochs} epochs'} "
            f"({pace:.2g} s per step, {self._steps} steps per epoch), "
            f"{peak_memory(self._process.device) / 1024:.1f} GiB of memory so far"
        )
        if seconds > _LONG and self._process.main:
            self._say(f"Warning: this run takes {duration(seconds)}{self._suggest()}")


def duration(seconds: float) -> str:
    """A duration for people: `40 s`, `12 min`, `3.4 h`, `2.9 days`."""
    for unit, size, limit in (("s", 1.0, 90), ("min", 60.0, 90), ("h", 3600.0, 36)):
        if seconds < limit * size:
            value = seconds / size
            return f"{value:.1f} {unit}" if unit == "h" else f"{value:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"
