"""Compare the peak memory of long and short runs: whole runs, with tables and journal, in fresh processes."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mineral_batch.errors import DataError
from mineral_batch.images.discover import find_images
from mineral_batch.types import Failure
from mineral_bench.images import write_photographs
from mineral_bench.process.isolated import Isolated
from mineral_bench.process.runner import Runner
from mineral_bench.process.usage import PeakMemory
from mineral_bench.report import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mineral_bench.process.runner import RunResult

# Size of generated images: small, because the run is measured and not the decoder.
_SIZE = (160, 120)


@dataclass(frozen=True)
class Peak:
    """The peak of one run.

    Attributes:
        images: how many.
        mib: the most memory that its process held.
        mib_in_all: of all processes, see `memory_in_all_mib`, sampled.
        seconds: that it took.
    """

    images: int
    mib: float
    mib_in_all: float
    seconds: float


@contextmanager
def folder_of(count: int, photos: Sequence[Path]) -> Iterator[Path]:
    """Make a folder of `count` images: links to the user's, or to a few generated ones.

    Raises:
        DataError: if there is no image under `photos`.
    """
    found = [path for path in find_images(photos) if not isinstance(path, Failure)]
    if photos and not found:
        raise DataError(f"no image under {', '.join(map(str, photos))}")
    with TemporaryDirectory() as name:
        if not found:
            write_photographs(Path(name), count, _SIZE)
        for index, path in enumerate(itertools.islice(itertools.cycle(found), count if found else 0)):
            Path(name, f"{index:07d}{path.suffix}").symlink_to(path.absolute())
        yield Path(name)


def measure(
    model: Path,
    counts: Sequence[int],
    photos: Sequence[Path] = (),
    backend: str = "auto",
    decode_processes: int | None = None,
) -> list[Peak]:
    """Measure the peak of one run for each count, each in a fresh process.

    Raises:
        DataError: if a run lost images.
        IsolatedError: if one failed.
    """
    runner = partial(Runner, model, backend, decode_processes=decode_processes)
    return [_peak(runner, count, photos) for count in counts]


def _peak(make: Callable[[], Runner], count: int, photos: Sequence[Path]) -> Peak:
    with folder_of(count, photos) as folder, Isolated(make) as runner, PeakMemory(runner.pid) as in_all:
        answer = runner.call("run", [str(folder)])
    ran: RunResult = answer.value
    if ran.predicted + ran.failed != count:
        raise DataError(f"a run of {count} images gave {ran.predicted} predictions and {ran.failed} failures")
    if answer.peak_memory_mib is None:
        raise DataError("this system does not report the peak memory of a process")
    return Peak(count, answer.peak_memory_mib, in_all.mib, ran.seconds)


def table(peaks: Sequence[Peak]) -> Table:
    """Return one row per run, each compared with the shortest."""
    least = min(peaks, key=lambda peak: peak.images)
    rows = [
        (
            peak.images,
            *_compared(peak.mib_in_all, least.mib_in_all),
            *_compared(peak.mib, least.mib),
            peak.seconds,
        )
        for peak in peaks
    ]
    columns = ("images", "peak MiB, all processes", _AGAINST, "peak MiB, its own process", _AGAINST, "seconds")
    note = (
        "All processes: sampled every 20 ms, shared pages count once, those of files (libraries) not at all. Its own "
        "process: the peak that the system recorded, with all pages."
    )
    return Table("Peak memory of whole runs", columns, rows, [note])


_AGAINST = "against the shortest run"


def _compared(mib: float, least: float) -> tuple[str, str]:
    return (f"{mib:.1f}", f"{100 * (mib / least - 1):+.1f}%") if least else ("", "")


def figures(peaks: Sequence[Peak]) -> list[dict[str, Any]]:
    """Return the figures for JSON."""
    return [
        {"pictures": peak.images, "mib": peak.mib, "mib_in_all": peak.mib_in_all, "seconds": peak.seconds}
        for peak in peaks
    ]
