"""One piece of a run: our own pipeline over its images, and one part written under the piece's name.

A picture can end the process that reads it (a decoder that crashes, memory that runs out). Before a stretch of images
is begun a mark is written under `attempts/`, and removed after it; a stretch whose marks show that its process died is
halved on the next try, until the picture is found, which becomes a row of failures.csv.
"""

from __future__ import annotations

import platform
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from mineral_batch.cluster.parts import PlannedImage, decode_images, encode_part
from mineral_batch.cluster.place import Place
from mineral_batch.cluster.plan import ATTEMPTS, Piece, Plan
from mineral_batch.cluster.sources import TEMPORARY, is_temporary, sources_of
from mineral_batch.errors import DataError
from mineral_batch.images.limits import MAX_PIXELS
from mineral_batch.pipeline import StageTimes
from mineral_batch.predictor import Predictor
from mineral_batch.results.fingerprint import DECODER, LIMIT, refuse_other, shared_fingerprint
from mineral_batch.results.manifest import describe_engine, describe_software
from mineral_batch.types import Failure, Result

#: What `--allow-mixed-engines` lets differ between the workers of a run.
MAY_DIFFER = ("engine", DECODER)
# Processes that may die over a piece before it is halved: it may be the machine that was taken away.
_DEATHS_OF_A_PIECE = 2
_DEATHS_OF_A_PICTURE = 2
_KILLER = "the process that read it died, several times"


class NotNowError(DataError):
    """Images could not be read for a reason that may pass; the piece is left for another try."""


@dataclass(frozen=True)
class PieceReport:
    """What became of a piece.

    Attributes:
        piece: its identifier.
        images: in it.
        failed: of them, rows of failures.csv.
        seconds: of the work.
        stages: seconds of each stage.
        left: why the piece was left for another try; empty if its part is written.
    """

    piece: str
    images: int
    failed: int = 0
    seconds: float = 0.0
    stages: Mapping[str, float] = field(default_factory=dict)
    left: str = ""

    def record(self) -> dict[str, Any]:
        """Return it for a structured log."""
        rate = round(self.images / self.seconds, 2) if self.seconds and not self.left else None
        return {**vars(self), "stages": dict(self.stages), "seconds": round(self.seconds, 3), "images_per_second": rate}


class PieceWorker:
    """Works on pieces, one after the other, with one open engine.

    Args:
        predictor: open; it stays the caller's.
        place: of the run.
        plan: of the run.
        mixed: go on although this engine or decoder is not the plan's.

    Raises:
        DataError: if this machine would give other probabilities than the plan's.
    """

    def __init__(self, predictor: Predictor, place: Place, plan: Plan, *, mixed: bool = False) -> None:
        self._predictor = predictor
        self._place = place
        self._plan = plan
        decoder, _ = predictor.choose_decoder(iter(()), plan.fingerprint.get(DECODER))
        self._fingerprint = shared_fingerprint(predictor, decoder)
        check_fingerprint(plan, self._fingerprint, place, mixed=mixed)

    def work(
        self,
        piece: Piece,
        seen: Callable[[Result], object] = lambda result: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> PieceReport:
        """Predict a piece and write its part, unless another worker has written it meanwhile.

        Args:
            piece: of the plan.
            seen: called with each result.
            stop: called before each image; once it returns True the piece is left.

        Raises:
            DataError: if the place cannot be read or written.
            BackendError: if the engine fails.
        """
        clock, times = time.monotonic(), StageTimes()
        content = self._place.get(piece.planned)
        if content is None:
            raise DataError(
                f"{self._place.name}/{piece.planned}, which lists the images of a piece, is missing: start over with "
                f"another output"
            )
        images = decode_images(content, f"{self._place.name}/{piece.planned}")
        try:
            results = list(self._results(piece, images, times, seen, stop))
        except NotNowError as error:
            return PieceReport(piece.id, piece.images, left=str(error))
        seconds = time.monotonic() - clock
        report = PieceReport(
            piece.id, len(images), sum(isinstance(r, Failure) for r in results), seconds, times.rounded()
        )
        self._place.put(piece.part, encode_part(images, results, self._certificate(report)))
        return report

    def _results(
        self,
        piece: Piece,
        images: list[PlannedImage],
        times: StageTimes,
        seen: Callable[[Result], object],
        stop: Callable[[], bool],
    ) -> Iterator[Result]:
        marks = _marks(self._place, piece)
        for begin, end in _stretches(marks, 0, len(images)):
            if end - begin == 1 and marks[begin, end] >= _DEATHS_OF_A_PICTURE:
                yield Failure(images[begin].name, "decode", _KILLER)
                continue
            mark = f"{ATTEMPTS}{piece.id}/{begin}-{end}.{secrets.token_hex(4)}"
            self._place.put(mark, b"")
            try:
                yield from self._predict(images[begin:end], times, seen, stop)
            finally:  # after an error the process lives on
                self._place.delete(mark)
        if marks:
            forget_deaths(self._place, piece)

    def _predict(
        self,
        images: list[PlannedImage],
        times: StageTimes,
        seen: Callable[[Result], object],
        stop: Callable[[], bool],
    ) -> Iterator[Result]:
        results = self._predictor.predict(sources_of(images), with_exif=self._plan.tables.needs_exif, times=times)
        with closing(results):
            for result in results:
                if isinstance(result, Failure) and is_temporary(result):
                    raise NotNowError(f"{result.path}: {result.reason.removeprefix(TEMPORARY)}")
                if stop():
                    raise NotNowError("stopped")
                seen(result)
                yield result

    def _certificate(self, report: PieceReport) -> dict[str, Any]:
        predictor = self._predictor
        return {
            "fingerprint": self._fingerprint,
            "engine": describe_engine(predictor),
            "versions": describe_software(),
            "machine": {"system": platform.platform(), "processor": platform.machine()},
            "seconds": round(report.seconds, 3),
            "stage_seconds": dict(report.stages),
        }


def check_fingerprint(plan: Plan, found: Mapping[str, str], place: Place, *, mixed: bool) -> None:
    """Compare what changes probabilities here with what the plan was made for.

    Args:
        plan: of the run.
        found: the fingerprint here.
        place: of the run.
        mixed: engines and decoders may differ, models never.

    Raises:
        DataError: naming what differs.
    """
    compared = {name: value for name, value in found.items() if not (mixed and name in MAY_DIFFER)}
    # Plans of earlier releases had no other limit than the default.
    refuse_other(place.name, {LIMIT: str(MAX_PIXELS), **plan.fingerprint}, compared)


def forget_deaths(place: Place, piece: Piece) -> None:
    """Remove the marks of processes that died over a piece, because it was not the piece that ended them."""
    for name in [*place.keys(f"{ATTEMPTS}{piece.id}/")]:
        place.delete(name)


def _marks(place: Place, piece: Piece) -> Counter[tuple[int, int]]:
    """How often a process died over each stretch of a piece."""
    prefix = f"{ATTEMPTS}{piece.id}/"
    found: Counter[tuple[int, int]] = Counter()
    for key in place.keys(prefix):
        begin, _, end = key.removeprefix(prefix).split(".")[0].partition("-")
        if begin.isdigit() and end.isdigit():
            found[int(begin), int(end)] += 1
    return found


def _stretches(marks: Mapping[tuple[int, int], int], begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the stretches to do one by one: those over which a process died are halved."""
    deaths = marks.get((begin, end), 0)
    is_whole = begin == 0 and not any(other[1] > end for other in marks)
    if end - begin <= 1 or deaths < (_DEATHS_OF_A_PIECE if is_whole else 1):
        yield begin, end
        return
    middle = (begin + end) // 2
    yield from _stretches(marks, begin, middle)
    yield from _stretches(marks, middle, end)
