"""A fake nvImageCodec, which decodes with Pillow on the fake GPUs of `tests/fakes/cuda.py`."""

from __future__ import annotations

import io
import threading
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage

from mineral_batch.cuda.probe import Gpu

from .cuda import Cuda

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


LOST = "CUDA Runtime failure: '#700'"
POISON = b"poison"
GPUS = [Gpu(0, "NVIDIA L4", "8.9", 24 << 30), Gpu(1, "NVIDIA L4", "8.9", 24 << 30)]


class Machine(Cuda):
    """With nvImageCodec.

    Attributes:
        batches: the lists that were decoded, in order.
        decoders: what each decoder was made with.
        refused: what nvImageCodec refuses.
        refuses_all: whether that is everything.
        fails: what it says whenever it is asked for anything; empty while it works.
        failures: so many of the next calls fail.
        broken: GPUs that are lost.
        lists_left: after so many lists every GPU is lost.
        is_upside_down: which pictures come out so.
    """

    def __init__(self) -> None:
        super().__init__(gpus=len(GPUS))
        self.kernels["resample"] = self.resample
        self.batches: list[list[bytes]] = []
        self.decoders: list[dict[str, Any]] = []
        self.refused: set[bytes] = set()
        self.refuses_all = False
        self.fails = ""
        self.failures = 0
        self.broken: set[int] = set()
        self.lists_left: int | None = None
        self.is_upside_down: Callable[[PILImage.Image], bool] = lambda picture: False
        self.pixels_alive = self.most_pixels_alive = 0
        self.lock = threading.Lock()

    def hold(self, pixels: int) -> None:
        with self.lock:
            self.pixels_alive += pixels
            self.most_pixels_alive = max(self.most_pixels_alive, self.pixels_alive)

    def resample(self, threads: int, arguments: Sequence[np.generic]) -> Callable[[], None]:
        """What `resample.cu` does."""
        kinds = [np.uint64] * 3 + [np.int32] * 4 + [np.int64]
        assert [type(argument) for argument in arguments] == kinds, "as the kernel declares them"
        values = [int(argument) for argument in arguments]
        args, result, weights, taps, size_in, size_out, inner, count = values
        assert threads >= count, "too few for all values"
        outer = count // size_out // inner

        def run() -> None:
            pixels = self.at(args, outer * size_in * inner).reshape(outer, size_in, inner)
            rows = self.at(weights, size_out * (2 + taps) * 4).view(np.int32).reshape(size_out, 2 + taps)
            out = self.at(result, count).reshape(outer, size_out, inner)
            for position, (first, length, *weight) in enumerate(rows.tolist()):
                part = pixels[:, first : first + length]
                total = np.tensordot(part, np.array(weight[:length], float), (1, 0)) + (1 << 21)  # whole numbers
                out[:, position] = np.clip(total // (1 << 22), 0, 255)

        return run


class NvImageCodec(ModuleType):
    """`nvidia.nvimgcodec`."""

    __version__ = "0.9.0"
    BackendKind = SimpleNamespace(**{kind: kind for kind in ("CPU_ONLY", "GPU_ONLY", "HYBRID_CPU_GPU", "HW_GPU_ONLY")})
    ColorSpec = SimpleNamespace(SRGB="sRGB")
    DecodeParams = dict

    def __init__(self, machine: Machine) -> None:
        super().__init__("nvidia.nvimgcodec")
        self.Decoder = partial(Decoder, machine)

    def Backend(self, kind: str) -> str:
        return kind

    def CodeStream(self, content: bytes) -> bytes:
        if b"no header" in content:
            raise RuntimeError("Failed to get image info")
        return content


class Decoder:
    def __init__(self, machine: Machine, **options: Any) -> None:
        self.machine = machine
        if machine.fails:
            raise RuntimeError(machine.fails)
        self.device = options["device_id"]
        machine.decoders.append(options)

    def decode(self, streams: list[bytes], *, params: Any, cuda_stream: int) -> list[Decoded | None]:
        assert cuda_stream in self.machine.streams
        assert params == {"apply_exif_orientation": False, "color_spec": "sRGB"}
        self.machine.batches.append(streams)
        if self.machine.fails:
            raise RuntimeError(self.machine.fails)
        if any(POISON in content for content in streams):
            raise RuntimeError("an image that it cannot handle")
        with self.machine.lock:
            if self.machine.failures:
                self.machine.failures -= 1
                raise RuntimeError("out of memory")
            if self.machine.lists_left == 0 or self.device in self.machine.broken:
                raise RuntimeError(LOST)
            if self.machine.lists_left:
                self.machine.lists_left -= 1
        return [self._one(content) for content in streams]

    def _one(self, content: bytes) -> Decoded | None:
        if self.machine.refuses_all or content in self.machine.refused:
            return None
        picture = PILImage.open(io.BytesIO(content))
        pixels = np.asarray(picture.convert("RGB"))
        return Decoded(self.machine, pixels[::-1] if self.machine.is_upside_down(picture) else pixels)


class Decoded:
    """A picture on the GPU; its memory goes with it."""

    def __init__(self, machine: Machine, pixels: NDArray[np.uint8]) -> None:
        self.machine = machine
        self.at = machine.place(np.ascontiguousarray(pixels).reshape(-1))
        self.count = pixels.shape[0] * pixels.shape[1]
        message = {"shape": pixels.shape, "typestr": "|u1", "data": (self.at, False), "strides": None, "version": 3}
        self.__cuda_array_interface__ = message
        machine.hold(self.count)

    def __del__(self) -> None:
        del self.machine.memory[self.at]
        self.machine.hold(-self.count)
