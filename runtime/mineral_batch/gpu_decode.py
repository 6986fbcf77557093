"""Big JPEGs decoded and resized on GPUs by nvImageCodec, where the processor's cores cannot feed the engine.

    decode threads:   read, look at the header -> queue of JPEGs ............ -> turn upright, the picture's row
    lanes (2 a GPU):                                decode a list | resize each | bring back what the model takes

What is not a plain big JPEG, what nvImageCodec refuses, and what may be damaged is decoded as ever, by
`mineral_batch.images`; it is counted by its reason. Pixels differ from that decoder's by its rounding and its scaling,
so a run is made with one or the other.

This module has not run on a GPU yet: its tests drive it with recorded stand-ins of nvImageCodec and CUDA. That is why
each lane first decodes a picture whose pixels are known, and is refused if they come out otherwise.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import threading
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage

from mineral_batch.backends.cuda_driver import Context, DriverError, cuda_version, gate, page_locked, require_gpu
from mineral_batch.capture import read_capture
from mineral_batch.errors import BackendError, MineralError
from mineral_batch.gpu_resize import MAX_SIDE, Resizer
from mineral_batch.images import (
    SIDEWAYS,
    Failure,
    Image,
    PictureError,
    one_line,
    open_rgb,
    resize,
    seen_part,
    turn_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mineral_batch.backends.cuda_driver import Gpu
    from mineral_batch.contract import InputSpec
    from mineral_batch.decoders import Decoder, Read
    from mineral_batch.images import Pixels

#: A JPEG of fewer pixels takes the processor a few milliseconds: it is left to it.
FROM_PIXELS = 1_000_000
# Of one decoded picture, and of those that a lane decodes at once: 192 MB of the GPU's memory, and as much as the
# decoder needs beside.
_UP_TO_PIXELS = 64_000_000
_PICTURES_AT_ONCE = 32
# So many JPEGs wait or are under way, which keeps both lanes of a GPU full; a thread that waits costs nothing.
_THREADS_A_GPU = 48
_LANES = 2
_START, _END, _SCAN = b"\xff\xd8\xff", b"\xff\xd9", b"\xff\xda"
# Largest mean difference from Pillow's pixels, of 255, that decoders' rounding explains in the picture that is known.
_TOLERANCE = 2.0

_log = logging.getLogger("mineral_batch")


@dataclass(frozen=True)
class _Jpeg:
    """One that a GPU may decode: its bytes, (width, height) as stored, and what makes it upright."""

    content: bytes
    size: tuple[int, int]
    turn: PILImage.Transpose | None
    answer: Future[Pixels | str] = field(default_factory=Future)

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]

    def seen(self, spec: InputSpec) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
        """The box that the model sees, and (width, height) of its result, both before the picture is turned."""
        if self.turn in SIDEWAYS:
            spec = replace(spec, width=spec.height, height=spec.width)
        return seen_part(self.size, spec), (spec.width, spec.height)


class GpuDecoder:
    """Big JPEGs on GPUs, in full; see `decoders.Decoder`.

    Args:
        spec: the model's input.
        otherwise: decodes everything else.
        devices: the GPUs; empty for the first.

    Attributes:
        name: as in `decoders.DECODERS`.
        version: what changes a pixel.
        threads: how many keep the GPUs busy.

    Raises:
        BackendError: if there is no GPU or no nvImageCodec, or they do not give the right pixels.
    """

    name = "gpu"

    def __init__(self, spec: InputSpec, otherwise: Decoder, devices: Sequence[int] = ()) -> None:
        found = [require_gpu("--decode gpu", index) for index in devices or (None,)]
        codec = _nvimagecodec()
        self._otherwise = otherwise
        # More threads wait for the GPUs than there are processors, and a large picture takes much memory.
        self._processors = threading.BoundedSemaphore(otherwise.threads)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._queue = _Queue()
        self._lanes: list[_Lane] = []
        self.threads = _THREADS_A_GPU * len(found)
        self.version = (
            f"nvImageCodec {codec.__version__} for JPEGs from {FROM_PIXELS / 1e6:g} megapixel on, else "
            f"{otherwise.version}"
        )
        try:
            for gpu in found:
                for _ in range(_LANES):
                    self._lanes.append(_Lane(codec, gpu, spec, self._queue))
        except BaseException:
            self.close()
            raise

    @property
    def counts(self) -> Mapping[str, int]:
        """How many pictures were decoded on a GPU, and how many not, by the reason."""
        with self._lock:
            return dict(self._counts)

    def decode(self, name: str, read: Read, *, with_capture: bool = False) -> Image | Failure:
        """See `images.decode_image`."""
        try:
            content = read()
        except (OSError, PictureError) as error:
            return Failure(name, "read", one_line(error))
        jpeg = look_at(content)
        pixels = self._decoded(jpeg) if isinstance(jpeg, _Jpeg) else jpeg
        if isinstance(pixels, str) or isinstance(jpeg, str):
            self._count(f"on the processor: {pixels}")
            with self._processors:
                return self._otherwise.decode(name, lambda: content, with_capture=with_capture)
        self._count("on the GPU")
        width, height = jpeg.size if jpeg.turn not in SIDEWAYS else jpeg.size[::-1]
        return Image(name, _turned(pixels, jpeg.turn), width, height, read_capture(content) if with_capture else None)

    def _decoded(self, jpeg: _Jpeg) -> Pixels | str:
        self._queue.put(jpeg)
        return jpeg.answer.result()

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def close(self) -> None:
        """Stop the lanes and give back what they hold on the GPUs."""
        self._queue.close()
        for lane in self._lanes:
            lane.join()


def look_at(content: bytes | PILImage.Image) -> _Jpeg | str:
    """A whole, plain and big JPEG, or why this is none; what is doubtful is left to the decoder on the processor."""
    if not isinstance(content, bytes) or not content.startswith(_START):
        return "no JPEG"
    try:
        with PILImage.open(io.BytesIO(content)) as picture:
            return _objection(picture, content) or _Jpeg(content, picture.size, turn_of(picture))
    # Damaged headers make Pillow raise almost anything; decoding it again gives the reason for its row.
    except Exception:
        return "damaged"


def _objection(picture: PILImage.Image, content: bytes) -> str:
    """Why a GPU should not decode it; empty if it should."""
    pixels = picture.width * picture.height
    if pixels < FROM_PIXELS:
        return f"below {FROM_PIXELS / 1e6:g} megapixel"
    if pixels > _UP_TO_PIXELS or max(picture.size) > MAX_SIDE:
        return "too large"
    if not _has_common_colours(picture):
        return "colours other than YCbCr and grey"
    return "" if _has_end(content) else "cut off, or with data behind its end"


def _has_common_colours(picture: PILImage.Image) -> bool:
    """YCbCr or grey. RGB that is stored as such looks like it, but for Adobe's mark or the names of its components."""
    components = [layer[0] for layer in getattr(picture, "layer", [])]
    if picture.info.get("adobe_transform") == 0 or components == list(b"RGB"):
        return False
    return picture.mode in ("RGB", "L")


def _has_end(content: bytes) -> bool:
    """Whether the last scan has an end: a decoder on a GPU may fill up with grey what was cut off.

    The end of a thumbnail in the header of a picture that was cut off is no end: a scan follows.
    """
    end = content.rfind(_END)
    return end >= 0 and content.find(_SCAN, end) < 0


def _turned(pixels: Pixels, turn: PILImage.Transpose | None) -> Pixels:
    return pixels if turn is None else np.asarray(PILImage.fromarray(pixels).transpose(turn))


class _Queue:
    """JPEGs on their way to the lanes, first come, first served. They are bounded by who puts them: each waits."""

    def __init__(self) -> None:
        self._waiting: deque[_Jpeg] = deque()
        self._changed = threading.Condition()
        self._is_closed = False

    def put(self, jpeg: _Jpeg) -> None:
        with self._changed:
            self._waiting.append(jpeg)
            self._changed.notify()

    def take(self) -> list[_Jpeg]:
        """As many as one lane decodes at once, at least one; none once the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            taken: list[_Jpeg] = []
            room = _UP_TO_PIXELS
            while self._waiting and self._waiting[0].pixels <= room and len(taken) < _PICTURES_AT_ONCE:
                taken.append(self._waiting.popleft())
                room -= taken[-1].pixels
            return taken

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


class _Lane:
    """A thread with a stream, a decoder and its buffers on one GPU.

    Raises:
        BackendError: if it does not give the right pixels.
    """

    def __init__(self, codec: Any, gpu: Gpu, spec: InputSpec, queue: _Queue) -> None:
        self._codec = codec
        self._gpu = gpu
        self._spec = spec
        self._queue = queue
        self._told: set[str] = set()
        is_open: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(is_open,), name=f"gpu-decode-{gpu.index}", daemon=True)
        self._thread.start()
        is_open.result()

    def join(self) -> None:
        """Wait until the closed queue is empty and everything is given back."""
        self._thread.join()

    def _run(self, is_open: Future[None]) -> None:
        """All of a lane's life is in its own thread, where its context is current."""
        try:
            context = Context(self._gpu)
        except DriverError as error:
            self._tell_failure(is_open, str(error))
            return
        try:
            with context.current():
                self._live(context, is_open)
        except MineralError as error:
            is_open.set_exception(error)
        # nvImageCodec raises RuntimeError, the driver DriverError.
        except Exception as error:
            self._tell_failure(is_open, one_line(error))
        finally:
            context.release()

    def _tell_failure(self, is_open: Future[None], reason: str) -> None:
        if is_open.done():
            self._tell_once(reason)
            return
        told = f"nvImageCodec {self._codec.__version__} does not start on {self._gpu.name} ({reason}): {_command()}"
        is_open.set_exception(BackendError(told))

    def _live(self, context: Context, is_open: Future[None]) -> None:
        with gate.shared():
            work = _Work(self._codec, self._gpu, self._spec, context)
        try:
            self._require_right_pixels(work)
            is_open.set_result(None)
            while jpegs := self._queue.take():
                self._serve(work, jpegs)
        finally:
            work.close()

    def _serve(self, work: _Work, jpegs: list[_Jpeg]) -> None:
        """Answer for each of them, whatever happens: their threads wait."""
        try:
            with gate.shared():
                answers = work.run(jpegs)
        # nvImageCodec raises RuntimeError, the driver DriverError; the processor can still decode them.
        except Exception as error:
            reason = f"it failed: {one_line(error)}"
            answers = [reason] * len(jpegs)
            self._tell_once(reason)
        for jpeg, answer in zip(jpegs, answers, strict=True):
            jpeg.answer.set_result(answer)

    def _tell_once(self, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            _log.warning("decoding on GPU %d: %s; the processor does it instead", self._gpu.index, reason)

    def _require_right_pixels(self, work: _Work) -> None:
        """Raises `BackendError` unless a picture that is known comes out as Pillow has it."""
        content, size = _known_picture()
        jpeg = _Jpeg(content, size, None)
        self._serve(work, [jpeg])
        found = jpeg.answer.result()
        if isinstance(found, str):
            raise BackendError(
                f"nvImageCodec {self._codec.__version__} decodes no JPEG on {self._gpu.name} ({found}); most often "
                f"nvJPEG is missing: {_command()}"
            )
        difference = np.abs(found.astype(int) - resize(open_rgb(content), self._spec)).mean()
        if difference > _TOLERANCE:
            raise BackendError(
                f"nvImageCodec {self._codec.__version__} gives wrong pixels on {self._gpu.name} (off by "
                f"{difference:.1f} of 255 in the mean): use --decode cpu"
            )


class _Work:
    """What a lane decodes with: nvImageCodec's decoder, the kernel that resizes, room for the results."""

    def __init__(self, codec: Any, gpu: Gpu, spec: InputSpec, context: Context) -> None:
        self._codec = codec
        self._spec = spec
        # Without the processor's own decoders among them: what no GPU decodes is ours to decode.
        kinds = (codec.BackendKind.HW_GPU_ONLY, codec.BackendKind.GPU_ONLY, codec.BackendKind.HYBRID_CPU_GPU)
        backends = [codec.Backend(kind) for kind in kinds]
        # Chroma is repeated, not interpolated, as is fastest. At 384 x 384 that is 59 dB and more from Pillow, on 24
        # photographs of 2 to 36 megapixels and with nvImageCodec's decoder on the processor.
        self._decoder = codec.Decoder(device_id=gpu.index, backends=backends, options=":fancy_upsampling=0")
        # Orientation is ours, so that it is the same by every road.
        self._params = codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB)
        self._context = context
        self._stream = context.stream()
        self._resizer = Resizer(context, self._stream, max(spec.width, spec.height))
        self._size = spec.width * spec.height * 3
        self._results = context.allocate(_PICTURES_AT_ONCE * self._size)
        self._host = page_locked((_PICTURES_AT_ONCE, self._size), gpu.index)

    def run(self, jpegs: Sequence[_Jpeg]) -> list[Pixels | str]:
        """Decode up to `_PICTURES_AT_ONCE`: each one's part for the model, not turned yet, or why there is none."""
        streams = [_code_stream(self._codec, jpeg.content) for jpeg in jpegs]
        parsed = [row for row, stream in enumerate(streams) if stream is not None]
        images: list[Any] = [None] * len(jpegs)
        for row, image in zip(parsed, self._decoded([streams[row] for row in parsed]), strict=True):
            images[row] = image
        try:
            refusals = [self._resize(*row) for row in zip(range(len(jpegs)), jpegs, images, strict=True)]
            self._context.from_gpu(self._host[: len(jpegs)], self._results, self._stream)
        finally:
            # Also after a failure: the pictures must stay until nothing reads them any more.
            self._stream.synchronize()
        return [refused or self._result(row, jpegs[row]) for row, refused in enumerate(refusals)]

    def _decoded(self, streams: list[Any]) -> list[Any]:
        """NvImageCodec's pictures, None for what it refuses; they are ready for what follows on the stream."""
        if not streams:
            return []
        found: list[Any] = self._decoder.decode(streams, params=self._params, cuda_stream=self._stream.handle)
        if len(found) != len(streams):
            raise RuntimeError(f"nvImageCodec {self._codec.__version__} leaves pictures out: {_command()}")
        return found

    def _resize(self, row: int, jpeg: _Jpeg, image: Any) -> str:
        """Start to resize one picture into its row; otherwise why not."""
        if image is None:
            return "nvImageCodec does not decode it"
        told = image.__cuda_array_interface__
        shape, dense = (jpeg.size[1], jpeg.size[0], 3), (jpeg.size[0] * 3, 3, 1)
        form = tuple(told["shape"]), told["typestr"], tuple(told.get("strides") or dense)
        if form != (shape, "|u1", dense):
            return "nvImageCodec decodes it to another form"
        box, target = jpeg.seen(self._spec)
        result = int(self._results) + row * self._size
        self._resizer.enqueue(told["data"][0], jpeg.size, box, target, self._spec.interpolation, result)
        return ""

    def _result(self, row: int, jpeg: _Jpeg) -> Pixels:
        _, (width, height) = jpeg.seen(self._spec)
        pixels: Pixels = self._host[row].reshape(height, width, 3).copy()
        return pixels

    def close(self) -> None:
        """Give everything back; the decoder first, which may still hold pictures."""
        self._decoder = None
        self._stream.synchronize()
        self._results.free()
        self._resizer.close()
        self._stream.close()


def _code_stream(codec: Any, content: bytes) -> Any:
    """The JPEG as nvImageCodec takes it; None if it does not understand its header."""
    try:
        return codec.CodeStream(content)
    except RuntimeError:
        return None


@cache
def _known_picture() -> tuple[bytes, tuple[int, int]]:
    """A JPEG with gradients in all directions, and its width and height, which differ."""
    width, height = 480, 360
    y, x = np.mgrid[0:height, 0:width]
    waves = [127.5 + 110 * np.sin(x / (40 + 20 * c) + y / (60 - 15 * c)) for c in range(3)]
    buffer = io.BytesIO()
    PILImage.fromarray(np.stack(waves, axis=-1).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue(), (width, height)


def _nvimagecodec() -> Any:
    # It prints a line for each picture that it refuses, which goes on to the processor's decoder.
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    try:
        return importlib.import_module("nvidia.nvimgcodec")
    except ImportError as error:
        raise BackendError(f"--decode gpu needs nvImageCodec, which does not load ({error}): {_command()}") from None


def _command() -> str:
    """What installs nvImageCodec and nvJPEG for the CUDA that this driver runs."""
    major = "12" if cuda_version().startswith("12.") else "13"
    return f'pip install "nvidia-nvimgcodec-cu{major}[nvjpeg]"'
