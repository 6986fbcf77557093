"""A piece of a batch on its way through a decode process."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from mineral_batch.errors import ImageError, one_line
from mineral_batch.images.decode import decode_image
from mineral_batch.images.limits import read_file
from mineral_batch.types import Failure, Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image as PILImage

    from mineral_batch.images.processes.worker import Answer, Item, Setup
    from mineral_batch.types import Pixels, Source


class Answered(list[Image | Failure]):
    """The results of a piece, and the seconds that decoding took."""

    seconds: float = 0.0


class Task:
    """A piece of a batch, and the future of its results.

    Attributes:
        future: of the results, in order.
        items: what a process has to decode: row, name, and a path or bytes.
    """

    def __init__(self, pixels: Pixels, first: int, sources: Sequence[Source | Failure], with_exif: bool) -> None:
        self.future: Future[Answered] = Future()
        self.pixels, self.with_exif = pixels, with_exif
        self._first, self._sources = first, sources
        self._results: dict[int, Image | Failure] = {}
        self._seconds = 0.0
        self.items: tuple[Item, ...] = ()

    def read(self, setup: Setup) -> None:
        """Find what a process has to decode; what cannot be read, and what is in memory, gets its result here."""
        items = []
        for row, source in enumerate(self._sources, self._first):
            if isinstance(source, Failure):
                self.fail(row, source)
                continue
            try:
                content = _content(source)
            except (OSError, ImageError) as error:
                self.fail(row, Failure(source.name, "read", one_line(error)))
                continue
            if isinstance(content, (str, bytes)):
                items.append((row, source.name, content))
            else:
                self._decode_here(row, source, setup)
        self.items = tuple(items)

    def _decode_here(self, row: int, source: Source, setup: Setup) -> None:
        image = decode_image(
            source.name,
            source.read,
            setup.spec,
            exact=setup.exact,
            with_exif=self.with_exif,
            keep_damaged=setup.keep_damaged,
            max_pixels=setup.max_pixels,
        )
        if isinstance(image, Failure):
            self.fail(row, image)
        else:
            self.pixels[row] = image.pixels
            self._results[row] = image

    def fail(self, row: int, failure: Failure) -> None:
        """Take a failure for a row's result."""
        self.pixels[row] = 0
        self._results[row] = failure

    def take(self, items: Sequence[Item], answer: Answer) -> None:
        """Take a process's answer for some of the items."""
        for (row, name, _), result in zip(items, answer.results, strict=True):
            if isinstance(result, Failure):
                self._results[row] = result
            else:
                self._results[row] = Image(name, self.pixels[row], *result)
        self._seconds += answer.seconds

    def resolve(self) -> None:
        """Set the future: every row has its result."""
        answered = Answered(self._results[row] for row in range(self._first, self._first + len(self._sources)))
        answered.seconds = self._seconds
        self.future.set_result(answered)


def _content(source: Source) -> str | bytes | PILImage.Image:
    """A file's path, which its process reads; what an archive or the caller's memory holds is read here."""
    if isinstance(source.read, partial) and source.read.func is read_file:
        return str(source.read.args[0])
    return source.read()
