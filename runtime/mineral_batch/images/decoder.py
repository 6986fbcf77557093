"""What every decoder offers, and the one on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import PIL
import simplejpeg

from mineral_batch.images.decode import decode_image
from mineral_batch.images.limits import MAX_PIXELS
from mineral_batch.system import cpu_count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from PIL import Image as PILImage

    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Failure, Image

    Read = Callable[[], bytes | PILImage.Image]

CPU, GPU = "cpu", "gpu"
AUTO = "auto"
DECODERS = (CPU, GPU, AUTO)
#: Of the pixels that our own code makes of a file; raised whenever they change for some files.
REVISION = 2
#: What becomes of damaged images: a failure, or a prediction from what can be decoded, which is marked.
REFUSE, PREDICT = "refuse", "predict"
DAMAGED = (REFUSE, PREDICT)


class Decoder(Protocol):
    """Makes the model's input from an image file.

    Attributes:
        name: `cpu` or `gpu`.
        version: its software and how it decodes: everything that changes a pixel.
        threads: how many threads should call it at once.
    """

    name: str
    version: str
    threads: int

    @property
    def counts(self) -> Mapping[str, int]:
        """How many images were decoded where; empty if there is only one place."""
        ...

    def decode(self, name: str, read: Read, *, with_exif: bool = False) -> Image | Failure:
        """Decode one image, see `images.decode.decode_image`; safe to call from any thread."""
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...


@dataclass(frozen=True)
class DecodeOptions:
    """How to decode.

    Attributes:
        spec: the model's input.
        exact: see `images.decode.open_rgb`.
        devices: indices of the GPUs; empty for the first one.
        threads: decode threads; None for the decoder's own number.
        keep_damaged, max_pixels: see `images.decode.decode_image`.
    """

    spec: InputSpec
    exact: bool = False
    devices: Sequence[int] = ()
    threads: int | None = None
    keep_damaged: bool = False
    max_pixels: int = MAX_PIXELS


class CpuDecoder:
    """Pillow on one thread per CPU; see `Decoder`.

    Args:
        spec: the model's input.
        exact: see `images.decode.open_rgb`.
        keep_damaged, max_pixels: see `images.decode.decode_image`.
    """

    name = CPU

    def __init__(
        self, spec: InputSpec, *, exact: bool = False, keep_damaged: bool = False, max_pixels: int = MAX_PIXELS
    ) -> None:
        self._decode = partial(decode_image, spec=spec, exact=exact, keep_damaged=keep_damaged, max_pixels=max_pixels)
        software = f"Pillow {PIL.__version__}, simplejpeg {simplejpeg.__version__}"
        self.version = f"{software}, revision {REVISION}, {'in full' if exact else 'scaled'}"
        self.threads = cpu_count()
        self.counts: Mapping[str, int] = {}

    def decode(self, name: str, read: Read, *, with_exif: bool = False) -> Image | Failure:
        """Decode one image, see `images.decode.decode_image`."""
        return self._decode(name, read, with_exif=with_exif)

    def close(self) -> None:
        """Do nothing: it holds nothing."""
