"""Large JPEGs decoded and resized on GPUs by nvImageCodec, where the CPU's cores cannot feed the engine.

    decode threads:         read, inspect the header -> JpegQueue .......... -> turn upright, build the Image
    GpuWorkers (2 a GPU):                               decode a batch | resize each | copy back the model's input

Everything else (small files, other formats, what nvImageCodec refuses, what may be damaged) is decoded on the CPU by
`mineral_batch.images.decode` and counted by its reason. The two decoders round and scale differently, so a run uses
one or the other.

A worker whose GPU fails for good ends; the others do its work. Without any worker the run ends with an error: the CPU
would decode the remaining images to slightly different pixels.

This module has not run on a GPU yet: its tests use recorded stand-ins of nvImageCodec and CUDA. That is why each worker
first decodes images whose pixels are known, and is refused if they come out differently.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as PILImage

from mineral_batch.cuda.probe import require_gpu
from mineral_batch.errors import ImageError, one_line
from mineral_batch.images.decoder import GPU
from mineral_batch.images.exif import read_exif
from mineral_batch.images.geometry import SIDEWAYS
from mineral_batch.images.gpu.batch import MAX_BATCH, WORKERS_PER_GPU, import_nvimagecodec
from mineral_batch.images.gpu.jpeg import MAX_PIXELS, MIN_PIXELS, GpuJpeg, inspect_jpeg
from mineral_batch.images.gpu.queue import JpegQueue
from mineral_batch.images.gpu.worker import GpuWorker
from mineral_batch.system import cpu_count
from mineral_batch.types import Failure, Image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mineral_batch.images.decoder import Decoder, Read
    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Pixels

# One batch in each worker and the next one waiting; a waiting thread costs next to nothing.
_THREADS_PER_GPU = (WORKERS_PER_GPU + 1) * MAX_BATCH


class GpuDecoder:
    """Decodes large JPEGs on GPUs, in full; see `images.decoder.Decoder`.

    Args:
        spec: the model's input.
        fallback: decodes everything else.
        devices: indices of the GPUs; empty for the first one.
        max_pixels: an image with more is left to `fallback`, which refuses it.

    Attributes:
        name: `gpu`.
        version: everything that changes a pixel.
        threads: how many decode threads keep the GPUs busy.

    Raises:
        BackendError: if there is no GPU or no nvImageCodec, or if they give wrong pixels.
    """

    name = GPU

    def __init__(
        self, spec: InputSpec, fallback: Decoder, devices: Sequence[int] = (), max_pixels: int = MAX_PIXELS
    ) -> None:
        gpus = [require_gpu("--decode gpu", index) for index in devices or (None,)]
        codec = import_nvimagecodec()
        self._fallback = fallback
        self._max_pixels = min(max_pixels, MAX_PIXELS)
        # More threads wait for the GPUs than there are CPUs, and a large image takes much memory.
        self._cpu_slots = threading.BoundedSemaphore(fallback.threads)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._queue = JpegQueue(MAX_BATCH)
        self._workers: list[GpuWorker] = []
        codec_threads = _codec_threads(WORKERS_PER_GPU * len(gpus))
        self.threads = _THREADS_PER_GPU * len(gpus)
        self.version = (
            f"nvImageCodec {codec.__version__} for JPEGs from {MIN_PIXELS / 1e6:g} megapixel on, else "
            f"{fallback.version}"
        )
        try:
            for gpu in gpus:
                for _ in range(WORKERS_PER_GPU):
                    self._workers.append(GpuWorker(codec, gpu, spec, self._queue, codec_threads))
        except BaseException:
            self.close()
            raise

    @property
    def counts(self) -> Mapping[str, int]:
        """How many images were decoded on a GPU, and how many on the CPU, by the reason."""
        with self._lock:
            return dict(self._counts)

    def decode(self, name: str, read: Read, *, with_exif: bool = False) -> Image | Failure:
        """Decode one image, see `images.decode.decode_image`.

        Raises:
            BackendError: if no GPU decodes any more.
        """
        try:
            content = read()
        except (OSError, ImageError) as error:
            return Failure(name, "read", one_line(error))
        jpeg = inspect_jpeg(content, self._max_pixels)
        pixels = self._decode_on_gpu(jpeg) if isinstance(jpeg, GpuJpeg) else jpeg
        if not isinstance(pixels, str) and _may_be_incomplete(pixels):
            pixels = "a plain corner, as damaged files have"
        if isinstance(pixels, str) or isinstance(jpeg, str):
            self._count(f"on the CPU: {pixels}")
            with self._cpu_slots:
                return self._fallback.decode(name, lambda: content, with_exif=with_exif)
        self._count("on the GPU")
        width, height = jpeg.size if jpeg.transpose not in SIDEWAYS else jpeg.size[::-1]
        exif = read_exif(content) if with_exif else None
        pixels = _transposed(pixels, jpeg.transpose)
        if jpeg.transform:
            pixels = jpeg.transform.apply_to_pixels(pixels)
        return Image(name, pixels, width, height, exif)

    def _decode_on_gpu(self, jpeg: GpuJpeg) -> Pixels | str:
        self._queue.put(jpeg)
        return jpeg.result.result()

    def _count(self, where: str) -> None:
        with self._lock:
            self._counts[where] += 1

    def close(self) -> None:
        """Stop the workers and release what they hold on the GPUs."""
        self._queue.close()
        for worker in self._workers:
            worker.join()


def _may_be_incomplete(pixels: Pixels) -> bool:
    """Return whether the end of the last stored row is of one color, with which decoders fill what a file lacks.

    GPU decoders do not report damage; the CPU's does. White and black are common backgrounds.
    """
    end = pixels[-1, -max(1, pixels.shape[1] // 8) :]
    return bool((end == end[0]).all()) and not (end[0] == 255).all() and not (end[0] == 0).all()


def _transposed(pixels: Pixels, transpose: PILImage.Transpose | None) -> Pixels:
    return pixels if transpose is None else np.asarray(PILImage.fromarray(pixels).transpose(transpose))


def _codec_threads(workers: int) -> int:
    """Return the CPU threads of each worker's nvImageCodec, so that all together have as many as there are CPUs.

    By default each takes one less than the machine has, even where this process may use fewer. On a machine with one
    CPU the answer is 0, its own choice: it lowers any other number below the machine's, so to none.
    """
    return 0 if os.cpu_count() == 1 else max(1, cpu_count() // workers)
