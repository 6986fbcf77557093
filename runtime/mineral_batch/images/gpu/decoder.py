"""Big JPEGs decoded and resized on GPUs by nvImageCodec, where the processor's cores cannot feed the engine.

    decode threads:   read, look at the header -> queue of JPEGs ............ -> turn upright, the picture's row
    lanes (2 a GPU):                                decode a list | resize each | bring back what the model takes

Everything else (small files, other formats, what nvImageCodec refuses, what may be damaged) is decoded on the CPU by
`mineral_batch.images.decode` and counted by its reason. The two decoders round and scale differently, so a run uses
one or the other.

A lane whose GPU fails for good ends; the others do its work. Without any the run ends with an error: pictures that the
processor decodes instead would be answered otherwise than the rest.

This module has not run on a GPU yet: its tests drive it with recorded stand-ins of nvImageCodec and CUDA. That is why
each lane first decodes pictures whose pixels are known, and is refused if they come out otherwise.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import re
import threading
import time
from collections import Counter, deque
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage

from mineral_batch.cuda.device import Context, cuda_version, gate, page_locked, require_gpu
from mineral_batch.errors import BackendError, MineralError
from mineral_batch.images.decode import SIDEWAYS, PictureError, one_line, open_rgb, resize, seen_part, turn_of
from mineral_batch.images.exif import read_capture
from mineral_batch.images.gpu.resize import MAX_SIDE, Resizer
from mineral_batch.system import cpu_count
from mineral_batch.types import Failure, Image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mineral_batch.cuda.device import Gpu
    from mineral_batch.images.decoders import Decoder, Read
    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Pixels

#: A JPEG of fewer pixels takes the processor a few milliseconds: it is left to it.
FROM_PIXELS = 1_000_000
# Of one decoded picture: 192 MB.
_UP_TO_PIXELS = 64_000_000
# A lane decodes a list at once, which keeps its decoder's threads and the GPU's JPEG engines busy: so many pictures,
# of 12 megapixels in the mean, in a sixteenth of the memory that is free. The decoder needs about as much beside.
_PICTURES_AT_ONCE = 32
_PIXELS_AT_ONCE = _PICTURES_AT_ONCE * 12_000_000
_SHARE = 16
_BYTES_A_PIXEL = 3
_LANES = 2
# A list is under way in each lane and the next one waits; a thread that waits costs next to nothing.
_THREADS_A_GPU = (_LANES + 1) * _PICTURES_AT_ONCE
# A lane ends after so many failures in a row that were no picture's, with pauses of so many seconds, then twice as
# many, between them; and at once after an error that CUDA mostly answers with for ever after: 7xx, in the driver's
# words or in nvImageCodec's.
_FAILURES = 3
_PAUSE = 1.0
_LASTING = re.compile(r"(CUDA error |#)7\d\d\b")
_START, _END, _SCAN = b"\xff\xd8\xff", b"\xff\xd9", b"\xff\xda"
# Of the pictures that are known, (width, height): above a megapixel, from where nvImageCodec has nvJPEG use another of
# its decoders.
_KNOWN_SIZE = (1280, 960)
_BASELINE = "baseline"
# Largest mean difference from Pillow's pixels, of 255, that decoders' rounding explains in such a picture.
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
        codec_threads = _codec_threads(_LANES * len(found))
        self.threads = _THREADS_A_GPU * len(found)
        self.version = (
            f"nvImageCodec {codec.__version__} for JPEGs from {FROM_PIXELS / 1e6:g} megapixel on, else "
            f"{otherwise.version}"
        )
        try:
            for gpu in found:
                for _ in range(_LANES):
                    self._lanes.append(_Lane(codec, gpu, spec, self._queue, codec_threads))
        except BaseException:
            self.close()
            raise

    @property
    def counts(self) -> Mapping[str, int]:
        """How many pictures were decoded on a GPU, and how many not, by the reason."""
        with self._lock:
            return dict(self._counts)

    def decode(self, name: str, read: Read, *, with_capture: bool = False) -> Image | Failure:
        """See `images.decode_image`.

        Raises:
            BackendError: if no GPU decodes any more.
        """
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
        self._lanes = 0
        self._lost = ""  # why there is no lane any more

    def enter(self) -> None:
        """One more lane takes from here."""
        with self._changed:
            self._lanes += 1

    def leave(self, jpegs: Sequence[_Jpeg], why: str) -> bool:
        """A lane fails for good, and what it had taken is for the others; false without any: then nobody waits on."""
        with self._changed:
            self._waiting.extendleft(reversed(jpegs))
            self._lanes -= 1
            if not self._lanes:
                self._lost = f"no GPU decodes any more ({why}): run it again, which goes on from here, or --decode cpu"
            while self._lost and self._waiting:
                self._waiting.popleft().answer.set_exception(BackendError(self._lost))
            self._changed.notify_all()
            return not self._lost

    def put(self, jpeg: _Jpeg) -> None:
        """Raises `BackendError` if no lane is left to take it."""
        with self._changed:
            if self._lost or self._is_closed:
                raise BackendError(self._lost or "the decoder on the GPU is closed")
            self._waiting.append(jpeg)
            self._changed.notify()

    def put_back(self, jpegs: Sequence[_Jpeg]) -> None:
        """To the front: a lane has failed with them."""
        with self._changed:
            self._waiting.extendleft(reversed(jpegs))
            self._changed.notify()

    def take(self, room: int) -> list[_Jpeg]:
        """Up to `room` pixels for one lane, at least one JPEG; none once the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            taken: list[_Jpeg] = []
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

    def __init__(self, codec: Any, gpu: Gpu, spec: InputSpec, queue: _Queue, codec_threads: int) -> None:
        self._codec = codec
        self._gpu = gpu
        self._spec = spec
        self._queue = queue
        self._codec_threads = codec_threads
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
            with ExitStack() as held:
                context = Context(self._gpu)
                held.callback(context.release)
                held.enter_context(context.current())
                self._live(context, is_open)
        # nvImageCodec raises RuntimeError, the driver DriverError.
        except Exception as error:
            self._tell_failure(is_open, error)

    def _tell_failure(self, is_open: Future[None], error: Exception) -> None:
        if is_open.done():
            # A GPU that failed fails again when it is closed.
            _log.warning("closing the decoder on GPU %d: %s", self._gpu.index, one_line(error))
            return
        if not isinstance(error, MineralError):
            reason = f"{self._gpu.name} ({one_line(error)})"
            error = BackendError(f"nvImageCodec {self._codec.__version__} does not start on {reason}: {_command()}")
        is_open.set_exception(error)

    def _live(self, context: Context, is_open: Future[None]) -> None:
        with gate.shared():
            work = _Work(self._codec, self._gpu, self._spec, context, self._codec_threads)
        try:
            with gate.shared():
                work.prepare(_known_jpegs(_KNOWN_SIZE)[_BASELINE])
            self._require_right_pixels(work)
            self._queue.enter()
            is_open.set_result(None)
            self._serve(work)
        finally:
            with gate.shared():
                work.close()

    def _serve(self, work: _Work) -> None:
        """Answer for every JPEG, whatever happens, since its thread waits; until the queue ends, or the GPU."""
        failed = 0
        while jpegs := self._queue.take(work.pixels_at_once):
            try:
                answers = self._answers(work, jpegs)
            except Exception as error:  # nvImageCodec raises RuntimeError, the driver DriverError
                failed += 1
                reason = one_line(error)
                if failed == _FAILURES or _LASTING.search(reason):
                    self._give_up(jpegs, reason)
                    return
                self._queue.put_back(jpegs)
                self._tell_once(f"{reason}; trying again")
                time.sleep(_PAUSE * failed)
                continue
            failed = 0
            for jpeg, answer in zip(jpegs, answers, strict=True):
                jpeg.answer.set_result(answer)

    def _answers(self, work: _Work, jpegs: list[_Jpeg]) -> list[Pixels | str]:
        """Of a list. One that fails on a GPU that is well is tried one by one: no picture pays for another.

        Raises:
            Exception: if the GPU is not well.
        """
        try:
            with gate.shared():
                answers = work.run(jpegs)
        except Exception as error:
            reason = one_line(error)
            if _LASTING.search(reason):
                raise
            self._require_any(work, reason)
            if len(jpegs) == 1:
                return [f"it failed: {reason}"]
            return [answer for jpeg in jpegs for answer in self._answers(work, [jpeg])]
        if all(isinstance(answer, str) for answer in answers):
            self._require_any(work, "it decodes no JPEG any more")
        return answers

    def _give_up(self, jpegs: list[_Jpeg], reason: str) -> None:
        if self._queue.leave(jpegs, f"GPU {self._gpu.index}: {reason}"):
            self._tell_once(f"{reason}; it ends here, and the decoders that are left go on")

    def _tell_once(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            _log.warning("decoding on GPU %d: %s", self._gpu.index, what)

    def _require_right_pixels(self, work: _Work) -> None:
        """Raises `BackendError` unless pictures that are known come out as Pillow has them; see `_known_jpegs`."""
        for form, content in _known_jpegs(_KNOWN_SIZE).items():
            found = _known(work, form)
            if not isinstance(found, str):
                self._require_alike(form, found, resize(open_rgb(content), self._spec))
            elif form == _BASELINE:
                raise BackendError(
                    f"nvImageCodec {self._codec.__version__} decodes no JPEG on {self._gpu.name} ({found}); most "
                    f"often nvJPEG is missing: {_command()}"
                )

    def _require_any(self, work: _Work, why: str) -> None:
        """Raises `RuntimeError` if it refuses any picture, which is how nvImageCodec tells most failures of its own."""
        if isinstance(_known(work, _BASELINE), str):
            raise RuntimeError(why)

    def _require_alike(self, form: str, found: Pixels, expected: Pixels) -> None:
        difference = np.abs(found.astype(int) - expected).mean()
        if difference > _TOLERANCE:
            raise BackendError(
                f"nvImageCodec {self._codec.__version__} gives wrong pixels on {self._gpu.name} (a {form} JPEG is off "
                f"by {difference:.1f} of 255 in the mean): use --decode cpu"
            )


class _Work:
    """What a lane decodes with: nvImageCodec's decoder, the kernel that resizes, room for the results.

    Attributes:
        pixels_at_once: how many it may be given, at least as many as one picture may have.
    """

    def __init__(self, codec: Any, gpu: Gpu, spec: InputSpec, context: Context, codec_threads: int) -> None:
        self._codec = codec
        self._spec = spec
        room = min(_PIXELS_AT_ONCE, context.free_memory() // _SHARE // _BYTES_A_PIXEL)
        self.pixels_at_once = max(_UP_TO_PIXELS, room)
        # Without the processor's own decoders among them: what no GPU decodes is ours to decode.
        kinds = (codec.BackendKind.HW_GPU_ONLY, codec.BackendKind.GPU_ONLY, codec.BackendKind.HYBRID_CPU_GPU)
        backends = [codec.Backend(kind) for kind in kinds]
        # Chroma is repeated, not interpolated, as is fastest. At 384 x 384 that is 59 dB and more from Pillow, on 24
        # photographs of 2 to 36 megapixels and with nvImageCodec's decoder on the processor.
        options = {"max_num_cpu_threads": codec_threads, "options": ":fancy_upsampling=0"}
        self._decoder = codec.Decoder(device_id=gpu.index, backends=backends, **options)
        # Orientation is ours, so that it is the same by every road.
        self._params = codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB)
        self._context = context
        self._size = spec.width * spec.height * 3
        with ExitStack() as held:
            self._stream = context.stream()
            held.callback(self._stream.close)
            self._resizer = Resizer(context, self._stream, max(spec.width, spec.height))
            held.callback(self._resizer.close)
            self._results = context.allocate(_PICTURES_AT_ONCE * self._size)
            held.callback(self._results.free)
            self._host = page_locked((_PICTURES_AT_ONCE, self._size), gpu.index)
            context.keep_freed(_LANES * self.pixels_at_once * _BYTES_A_PIXEL)
            self._held = held.pop_all()

    def prepare(self, content: bytes) -> None:
        """Decode a full list of one JPEG, before anything else.

        For all its life nvImageCodec gives the GPU's JPEG engines no more of a list than its first list was long, and
        the rest to another decoder (`adjustBatchSizes` in `image_generic_codec.h`): then these engines would idle, and
        a picture's pixels would depend on how many were decoded with it.
        """
        streams = [_code_stream(self._codec, content) for _ in range(_PICTURES_AT_ONCE)]
        self._decoded([stream for stream in streams if stream is not None])
        self._stream.synchronize()

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
        """Give everything back, whatever fails of it; the decoder first, which may still hold pictures."""
        self._decoder = None
        with self._held:
            self._context.keep_freed(0)
            self._stream.synchronize()


def _known(work: _Work, form: str) -> Pixels | str:
    """What becomes of one of `_known_jpegs`."""
    with gate.shared():
        [found] = work.run([_Jpeg(_known_jpegs(_KNOWN_SIZE)[form], _KNOWN_SIZE, None)])
    return found


def _code_stream(codec: Any, content: bytes) -> Any:
    """The JPEG as nvImageCodec takes it; None if it does not understand its header."""
    try:
        return codec.CodeStream(content)
    except RuntimeError:
        return None


@cache
def _known_jpegs(size: tuple[int, int]) -> dict[str, bytes]:
    """A picture with gradients in all directions, once for each decoder that nvImageCodec may have for it.

    A GPU's JPEG engines take the baseline one, or the decoder on its cores where there are none; the progressive one
    is beyond both. Whoever refuses either of the other forms does no harm: the processor decodes it.
    """
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    waves = [127.5 + 110 * np.sin(x / (40 + 20 * c) + y / (60 - 15 * c)) for c in range(3)]
    picture = PILImage.fromarray(np.stack(waves, axis=-1).astype(np.uint8))
    return {
        _BASELINE: _jpeg(picture),
        "progressive": _jpeg(picture, progressive=True),
        "grey": _jpeg(picture.convert("L")),
    }


def _jpeg(picture: PILImage.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def _codec_threads(lanes: int) -> int:
    """Threads of each lane's decoder, so that all lanes together have as many as there are processors.

    By itself each takes one less than the machine has, even where this process may use but a few of them. On a machine
    with a single one that is left to it, which is 0: it lowers any other number below the machine's, so to none.
    """
    return 0 if os.cpu_count() == 1 else max(1, cpu_count() // lanes)


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
