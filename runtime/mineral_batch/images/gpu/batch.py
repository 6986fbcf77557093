"""One GPU stream's decoder: a batch of JPEGs in, the pixels that the model sees out."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from mineral_batch.cuda.pinned import pinned_array
from mineral_batch.cuda.probe import cuda_version
from mineral_batch.errors import BackendError
from mineral_batch.images.gpu.jpeg import MAX_PIXELS
from mineral_batch.images.gpu.resize import Resizer
from mineral_batch.system import pip_command, pip_install

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mineral_batch.cuda.core import CoreContext
    from mineral_batch.cuda.probe import Gpu
    from mineral_batch.images.gpu.jpeg import GpuJpeg
    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Pixels

#: Most JPEGs in one batch, which keeps the decoder's threads and the GPU's JPEG engines busy.
MAX_BATCH = 32
#: Workers on each GPU: one batch is decoded while another one is resized and copied.
WORKERS_PER_GPU = 2
# A batch has at most this many pixels (12 megapixels each on average), in at most this share of the free GPU memory.
# The decoder needs about as much again.
_MAX_BATCH_PIXELS = MAX_BATCH * 12_000_000
_MEMORY_SHARE = 16
_BYTES_PER_PIXEL = 3

_log = logging.getLogger("mineral_batch")


class BatchDecoder:
    """NvImageCodec's decoder, the resize kernel and the result buffers of one worker; used in its thread.

    Args:
        codec: the module `nvidia.nvimgcodec`.
        gpu: the GPU.
        spec: the model's input.
        context: of the GPU, current.
        codec_threads: CPU threads of nvImageCodec's decoder.

    Attributes:
        max_pixels: of one batch; at least as many as one JPEG may have.
    """

    def __init__(self, codec: Any, gpu: Gpu, spec: InputSpec, context: CoreContext, codec_threads: int) -> None:
        self._codec = codec
        self._spec = spec
        available = min(_MAX_BATCH_PIXELS, context.free_memory() // _MEMORY_SHARE // _BYTES_PER_PIXEL)
        self.max_pixels = max(MAX_PIXELS, available)
        # Without nvImageCodec's CPU decoders: what no GPU decodes goes to our own.
        kinds = (codec.BackendKind.HW_GPU_ONLY, codec.BackendKind.GPU_ONLY, codec.BackendKind.HYBRID_CPU_GPU)
        backends = [codec.Backend(kind) for kind in kinds]
        # Chroma is repeated, not interpolated, which is fastest. At 384 x 384 that is 59 dB and more from Pillow, on
        # 24 photos of 2 to 36 megapixels, with nvImageCodec's CPU decoder.
        options = {"max_num_cpu_threads": codec_threads, "options": ":fancy_upsampling=0"}
        self._decoder = codec.Decoder(device_id=gpu.index, backends=backends, **options)
        # Orientation is applied by our own code, the same for both decoders.
        self._params = codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB)
        self._context = context
        self._size = spec.width * spec.height * 3
        with ExitStack() as held:
            self._stream = context.stream()
            held.callback(self._stream.close)
            self._resizer = Resizer(context, self._stream, max(spec.width, spec.height))
            held.callback(self._resizer.close)
            self._results = context.allocate(MAX_BATCH * self._size)
            held.callback(self._results.close)
            self._host = pinned_array((MAX_BATCH, self._size), gpu)
            context.keep_freed(WORKERS_PER_GPU * self.max_pixels * _BYTES_PER_PIXEL)
            self._held = held.pop_all()

    def warm_up(self, content: bytes) -> None:
        """Decode a full batch of one JPEG, before anything else.

        For the rest of its life nvImageCodec gives the GPU's JPEG engines no more of a batch than its first batch was
        long, and the rest to another decoder (`adjustBatchSizes` in `image_generic_codec.h`): the engines would idle,
        and an image's pixels would depend on how many were decoded with it.
        """
        streams = [code_stream(self._codec, content) for _ in range(MAX_BATCH)]
        self._decode([stream for stream in streams if stream is not None])
        self._stream.synchronize()

    def run(self, jpegs: Sequence[GpuJpeg]) -> list[Pixels | str]:
        """Decode up to `MAX_BATCH` JPEGs: for each its resized pixels as stored, or why there are none."""
        streams = [code_stream(self._codec, jpeg.content) for jpeg in jpegs]
        parsed = [row for row, stream in enumerate(streams) if stream is not None]
        images: list[Any] = [None] * len(jpegs)
        for row, image in zip(parsed, self._decode([streams[row] for row in parsed]), strict=True):
            images[row] = image
        try:
            refusals = [self._resize(*row) for row in zip(range(len(jpegs)), jpegs, images, strict=True)]
            self._context.from_gpu(self._host[: len(jpegs)], self._results, self._stream)
        finally:
            # Also after a failure: the images must stay alive until nothing reads them any more.
            self._stream.synchronize()
        return [refusal or self._result(row, jpegs[row]) for row, refusal in enumerate(refusals)]

    def _decode(self, streams: list[Any]) -> list[Any]:
        """Return nvImageCodec's images, None for what it refuses, ready for what follows on the stream."""
        if not streams:
            return []
        images: list[Any] = self._decoder.decode(streams, params=self._params, cuda_stream=self._stream.handle)
        if len(images) != len(streams):
            raise RuntimeError(f"nvImageCodec {self._codec.__version__} leaves images out: {install_command()}")
        return images

    def _resize(self, row: int, jpeg: GpuJpeg, image: Any) -> str:
        """Start to resize one image into its row; otherwise return why not."""
        if image is None:
            return "nvImageCodec does not decode it"
        array = image.__cuda_array_interface__
        shape, dense = (jpeg.size[1], jpeg.size[0], 3), (jpeg.size[0] * 3, 3, 1)
        layout = tuple(array["shape"]), array["typestr"], tuple(array.get("strides") or dense)
        if layout != (shape, "|u1", dense):
            return "nvImageCodec decodes it to another layout"
        box, target = jpeg.stored_geometry(self._spec)
        result = self._results.address + row * self._size
        self._resizer.enqueue(array["data"][0], jpeg.size, box, target, self._spec.interpolation, result)
        return ""

    def _result(self, row: int, jpeg: GpuJpeg) -> Pixels:
        _, (width, height) = jpeg.stored_geometry(self._spec)
        pixels: Pixels = self._host[row].reshape(height, width, 3).copy()
        return pixels

    def close(self) -> None:
        """Release everything, even if some of it fails; the decoder first, which may still hold images."""
        self._decoder = None
        with self._held:
            self._context.keep_freed(0)
            self._stream.synchronize()


def code_stream(codec: Any, content: bytes) -> Any:
    """Return the JPEG as nvImageCodec takes it; None if it does not understand its header."""
    try:
        return codec.CodeStream(content)
    except RuntimeError:
        return None


def import_nvimagecodec() -> Any:
    """Import nvImageCodec.

    Raises:
        BackendError: if it is not installed or does not load.
    """
    # It prints a line for each image that it refuses, which the CPU then decodes.
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    try:
        with _stderr_to_log():
            return importlib.import_module("nvidia.nvimgcodec")
    except ImportError as error:
        raise BackendError(
            f"--decode gpu needs nvImageCodec, which does not load ({error}): {install_command()}"
        ) from None


@contextmanager
def _stderr_to_log() -> Iterator[None]:
    """Send what is written to stderr in the block, also by C code, to the debug log.

    When it is imported, nvImageCodec 0.9 writes that two optional libraries, for JPEG 2000 and TIFF, "failed to load",
    whatever its verbosity.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            for line in file.read().decode(errors="replace").splitlines():
                _log.debug("nvImageCodec: %s", line)


def install_command() -> str:
    """Return the command that installs nvImageCodec and nvJPEG for this driver's CUDA version.

    The extra is for CUDA 13; an older driver needs the wheel for CUDA 12 in its place.
    """
    if cuda_version().startswith("12."):
        return f"{pip_command()} install 'nvidia-nvimgcodec-cu12[nvjpeg]'"
    return pip_install("gpu-decode")
