"""Does a long run need more memory than a short one? Whole runs, with tables and journal, in fresh processes."""

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
from mineral_bench.report import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mineral_bench.process.runner import Ran

# Of the pictures made here: small, because what is measured is the run and not the decoder.
_SIZE = (160, 120)


@dataclass(frozen=True)
class Peak:
    """Of one run.

    Attributes:
        pictures: how many.
        mib: the most that its process held.
        seconds: that it took.
    """

    pictures: int
    mib: float
    seconds: float


@contextmanager
def folder_of(count: int, photos: Sequence[Path]) -> Iterator[Path]:
    """A folder of so many pictures: links to the user's, or to a few that are made here.

    Raises:
        DataError: if there is no photograph under `photos`.
    """
    found = [path for path in find_images(photos) if not isinstance(path, Failure)]
    if photos and not found:
        raise DataError(f"no photograph under {', '.join(map(str, photos))}")
    with TemporaryDirectory() as name:
        if not found:
            write_photographs(Path(name), count, _SIZE)
        for index, path in enumerate(itertools.islice(itertools.cycle(found), count if found else 0)):
            Path(name, f"{index:07d}{path.suffix}").symlink_to(path.absolute())
        yield Path(name)


def measure(model: Path, counts: Sequence[int], photos: Sequence[Path] = (), backend: str = "auto") -> list[Peak]:
    """The peak of one run per count, each in a fresh process.

    Raises:
        DataError: if a run lost pictures.
        IsolatedError: if one failed.
    """
    return [_peak(model, count, photos, backend) for count in counts]


def _peak(model: Path, count: int, photos: Sequence[Path], backend: str) -> Peak:
    with folder_of(count, photos) as folder, Isolated(partial(Runner, model, backend)) as runner:
        answer = runner.call("run", [str(folder)])
    ran: Ran = answer.value
    if ran.predicted + ran.failed != count:
        raise DataError(f"a run of {count} pictures gave {ran.predicted} predictions and {ran.failed} failures")
    if answer.peak_memory_mib is None:
        raise DataError("this system does not say how much memory a process has held at most")
    return Peak(count, answer.peak_memory_mib, ran.seconds)


def table(peaks: Sequence[Peak]) -> Table:
    """One row per run, each against the shortest."""
    least = min(peaks, key=lambda peak: peak.pictures)
    rows = [
        (peak.pictures, f"{peak.mib:.1f}", f"{100 * (peak.mib / least.mib - 1):+.1f} %", peak.seconds) for peak in peaks
    ]
    columns = ("pictures", "peak MiB", "against the shortest run", "seconds")
    return Table("Peak memory of whole runs", columns, rows)


def figures(peaks: Sequence[Peak]) -> list[dict[str, Any]]:
    """For JSON."""
    return [vars(peak) for peak in peaks]
