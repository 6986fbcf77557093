"""The values that flow through a run, shared by every room.

Source --decode--> Image | Failure --infer--> Prediction | Failure --write--> a row
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image as PILImage

Pixels = NDArray[np.uint8]
Probabilities = NDArray[np.float32]


@dataclass(frozen=True)
class ExifInfo:
    """When and where, as far as the camera noted it.

    Attributes:
        time: ISO 8601, seconds, with the offset from UTC if there is one; None if not noted.
        latitude: decimal degrees, north positive, -90..90; None if not noted.
        longitude: decimal degrees, east positive, -180..180; None if not noted.
    """

    time: str | None = None
    latitude: float | None = None
    longitude: float | None = None


@dataclass(frozen=True)
class Source:
    """One photograph before it is read.

    Attributes:
        name: its row's name: the path as it was found, or `ARCHIVE/MEMBER`.
        size: bytes.
        modified: nanoseconds since 1970, or the checksum of an archive's member; with `size` it tells whether the
            picture changed since an earlier run.
        read: gives the file's bytes, or a picture that is in memory already; raises `OSError` or
            `images.ImageError`. Safe to call from any thread.
    """

    name: str
    size: int
    modified: int
    read: Callable[[], bytes | PILImage.Image] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Failure:
    """A picture without a prediction.

    Attributes:
        path: as `mineral_batch.images.discover` names it.
        stage: `read` (the file, or its decoder is not installed), `decode` (its content) or `infer` (the model's
            answer).
        reason: one line.
    """

    path: str
    stage: str
    reason: str


@dataclass(frozen=True)
class Image:
    """A decoded picture.

    Attributes:
        path: as `mineral_batch.images.discover` names it.
        pixels: (H, W, 3) uint8 RGB, the model's input size.
        width: of the upright photograph, pixels.
        height: of the upright photograph, pixels.
        exif: when and where it was taken; None where that was not asked for.
    """

    path: str
    pixels: Pixels
    width: int
    height: int
    exif: ExifInfo | None = None


@dataclass(frozen=True)
class Prediction:
    """What the model says of one photograph.

    Attributes:
        path: as `mineral_batch.images.discover` names it.
        probabilities: (L,) float32, 0..1, in the order of the contract's labels.
        width: of the upright photograph, pixels.
        height: of the upright photograph, pixels.
        exif: when and where it was taken; None where that was not asked for.
    """

    path: str
    probabilities: Probabilities
    width: int
    height: int
    exif: ExifInfo | None = None


Result = Prediction | Failure
