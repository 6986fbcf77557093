"""The values that flow through a run, shared by every room.

Source --decode--> Image | Failure --infer--> Prediction | Failure --write--> a row
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    """One image before it is read.

    Attributes:
        name: its row's name: the path as it was found, or `ARCHIVE/MEMBER`.
        size: bytes.
        modified: nanoseconds since 1970, or the checksum of an archive's member; with `size` it tells whether the
            image changed since an earlier run.
        read: returns the file's bytes, or an image that is in memory already; raises `OSError` or
            `images.ImageError`. Safe to call from any thread.
    """

    name: str
    size: int
    modified: int
    read: Callable[[], bytes | PILImage.Image] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Failure:
    """An image without a prediction.

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
    """A decoded image.

    Attributes:
        path: as `mineral_batch.images.discover` names it.
        pixels: (H, W, 3) uint8 RGB, the model's input size.
        width: of the upright image, pixels.
        height: of the upright image, pixels.
        exif: when and where it was taken; None if it was not requested.
        damage: why only a part of it could be decoded, one line; None of a whole image.
        further: how many more photos its file has, which are not read: pages of a TIFF, images of a HEIC.
    """

    path: str
    pixels: Pixels
    width: int
    height: int
    exif: ExifInfo | None = None
    damage: str | None = None
    further: int = 0


@dataclass(frozen=True)
class Prediction:
    """The model's answer for one image.

    Attributes:
        path: as `mineral_batch.images.discover` names it.
        probabilities: (L,) float32, 0..1, in the order of the contract's labels.
        width: of the upright image, pixels.
        height: of the upright image, pixels.
        exif: when and where it was taken; None if it was not requested.
        labels: L, of the contract.
        thresholds: L, of the contract: the probability from which a label counts as present.
        familiarity: share of the training images that look stranger to the model, 0..1; None if it was not
            requested. Below 0.05 the image looks like nothing that the model was trained on.
        damage: why only a part of the image could be decoded, one line; None of a whole image.
        further: see `Image`.
    """

    path: str
    probabilities: Probabilities
    width: int
    height: int
    exif: ExifInfo | None = None
    labels: tuple[str, ...] = field(default=(), repr=False, compare=False)
    thresholds: tuple[float, ...] = field(default=(), repr=False, compare=False)
    familiarity: float | None = None
    damage: str | None = None
    further: int = 0

    @property
    def minerals(self) -> list[str]:
        """The labels at or above their thresholds, most probable first: the column `minerals` of the tables."""
        return labels_present(self.probabilities.tolist(), self.labels, self.thresholds)

    @property
    def best(self) -> tuple[str, float]:
        """The most probable label and its probability, whether or not it reaches its threshold."""
        index = int(self.probabilities.argmax())
        return self.labels[index], float(self.probabilities[index])


Result = Prediction | Failure


def labels_present(probabilities: Sequence[float], labels: Sequence[str], thresholds: Sequence[float]) -> list[str]:
    """Return the labels at or above their thresholds, the most probable first; all arguments of length L."""
    present = [
        (value, label)
        for value, label, threshold in zip(probabilities, labels, thresholds, strict=True)
        if value >= threshold
    ]
    return [label for _, label in sorted(present, key=lambda pair: -pair[0])]
