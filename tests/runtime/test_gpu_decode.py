"""Decoding on a GPU against a recorded stand-in of nvImageCodec and the driver: order, lifetimes, who decodes what.

The stand-in decodes with Pillow on the GPUs of `tests/cuda.py`, and its kernel is a translation of `resample.cu`, which
is also compiled as C and compared. It says nothing about a real GPU.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image as PILImage

from mineral_batch import BackendError, DataError, Failure, Image, InputSpec, Predictor, doctor
from mineral_batch.cli import main
from mineral_batch.cuda import device as cuda_driver
from mineral_batch.cuda.device import DriverError, Gpu
from mineral_batch.images import decoders
from mineral_batch.images.decoders import CpuDecoder
from mineral_batch.images.discover import find_sources
from mineral_batch.images.gpu import decoder as gpu_decode
from mineral_batch.images.gpu import resize as gpu_resize
from mineral_batch.images.gpu.decoder import GpuDecoder, look_at
from mineral_batch.images.gpu.resize import MAX_SIDE, Resizer, table
from mineral_batch.results import run as runs

from ..cuda import CONTEXTS, Cuda, CudaError
from .conftest import encode, scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from .conftest import Encoded

SPEC = InputSpec(height=24, width=32, interpolation="bicubic")
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

    def resample(self, threads: int, arguments: Sequence[int]) -> Callable[[], None]:
        """What `resample.cu` does."""
        kinds = [ctypes.c_uint64] * 3 + [ctypes.c_int] * 4 + [ctypes.c_longlong]
        values = [kind.from_address(address).value for kind, address in zip(kinds, arguments, strict=True)]
        given, result, weights, taps, size_in, size_out, inner, count = values
        assert threads >= count, "too few for all values"
        outer = count // size_out // inner

        def run() -> None:
            pixels = self.at(given, outer * size_in * inner).reshape(outer, size_in, inner)
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
            raise RuntimeError("a picture that it cannot bear")
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
        told = {"shape": pixels.shape, "typestr": "|u1", "data": (self.at, False), "strides": None, "version": 3}
        self.__cuda_array_interface__ = told
        machine.hold(self.count)

    def __del__(self) -> None:
        del self.machine.memory[self.at]
        self.machine.hold(-self.count)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine()
    machine.install(monkeypatch)
    assert cuda_driver.gpus() == GPUS
    monkeypatch.setattr(gpu_decode, "FROM_PIXELS", 1000)  # so that the tests' pictures are big
    monkeypatch.setattr(gpu_decode, "_KNOWN_SIZE", (120, 90))
    monkeypatch.setattr(gpu_decode, "_PAUSE", 0)
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", NvImageCodec(machine))
    yield machine
    machine.require_given_back()


@pytest.fixture
def decoder(machine: Machine) -> Iterator[GpuDecoder]:
    opened = GpuDecoder(SPEC, CpuDecoder(SPEC))
    machine.batches.clear()
    machine.most_pixels_alive = 0
    yield opened
    opened.close()


def jpeg(width: int = 90, height: int = 60, seed: int = 0, **options: Any) -> bytes:
    return encode(scene(width, height, seed), "JPEG", **{"quality": 92, **options})


def with_orientation(value: int, **size: int) -> bytes:
    exif = PILImage.Exif()
    exif[274] = value
    return jpeg(exif=exif, **size)


def decoded(decoder: Any, content: bytes, name: str = "a") -> Image:
    image = decoder.decode(name, lambda: content)
    assert isinstance(image, Image)
    return image


def assert_alike(one: Image, other: Image) -> None:
    """But for the order in which Pillow resizes the two axes."""
    assert (one.path, one.width, one.height, one.pixels.shape) == (
        other.path,
        other.width,
        other.height,
        other.pixels.shape,
    )
    difference = np.abs(one.pixels.astype(int) - other.pixels)
    assert difference.max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("rule", ["squash", "crop"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_every_orientation_comes_upright_as_on_the_processor(
    machine: Machine, orientation: int, rule: Any, interpolation: Any
) -> None:
    spec = InputSpec(height=24, width=32, resize=rule, interpolation=interpolation)
    cpu = CpuDecoder(spec, exact=True)
    gpu = GpuDecoder(spec, cpu)
    content = with_orientation(orientation)
    assert_alike(decoded(gpu, content), decoded(cpu, content))
    assert gpu.counts == {"on the GPU": 1}
    gpu.close()


def test_every_kind_of_photograph_comes_as_on_the_processor(decoder: GpuDecoder, photos: dict[str, Encoded]) -> None:
    cpu = CpuDecoder(SPEC, exact=True)
    for name, photo in photos.items():
        assert_alike(decoded(decoder, photo.content, name), decoded(cpu, photo.content, name))
    on_gpu = {"baseline.jpg", "progressive.jpeg", "a JPEG called.png", "CAPITALS.JPG", "grey.jpg"}
    assert decoder.counts["on the GPU"] == len(on_gpu) + ("multi.mpo" in photos)
    assert decoder.counts["on the processor: colours other than YCbCr and grey"] == 1, "cmyk.jpg"


def test_what_cannot_be_read_fails_with_the_same_words(decoder: GpuDecoder, damaged: dict[str, bytes]) -> None:
    cpu = CpuDecoder(SPEC)
    for name, content in damaged.items():
        for whole in (content, content + jpeg()[-2:]):  # also where the end of a JPEG is there
            expected = cpu.decode(name, lambda whole=whole: whole)
            assert isinstance(expected, Failure) or whole != content
            found = decoder.decode(name, lambda whole=whole: whole)
            assert found == expected if isinstance(expected, Failure) else isinstance(found, Image)


def test_a_file_that_cannot_be_read_is_a_failure(decoder: GpuDecoder) -> None:
    def read() -> bytes:
        raise PermissionError(13, "Permission denied")

    assert decoder.decode("a", read) == Failure("a", "read", "Permission denied")


def test_a_picture_cut_off_is_not_left_to_the_gpu_to_fill_up(decoder: GpuDecoder, machine: Machine) -> None:
    exif = PILImage.Exif()
    thumbnail = jpeg(40, 30)  # has an end of its own, before the picture begins
    exif[37500] = thumbnail
    whole = jpeg(200, 150, exif=exif)
    assert thumbnail in whole
    cut = whole[: len(whole) * 2 // 3]
    assert isinstance(decoder.decode("a", lambda: cut), Failure)
    assert machine.batches == []
    decoded(decoder, whole + bytes(1000))
    assert len(machine.batches) == 1, "but what merely follows its end does no harm"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (jpeg(30, 30), "below 0.001 megapixel"),
        (encode(scene(90, 60), "PNG"), "no JPEG"),
        (jpeg(MAX_SIDE + 1, 1), "too large"),
        (encode(scene(90, 60).convert("CMYK"), "JPEG"), "colours other than YCbCr and grey"),
        (encode(scene(90, 60), "JPEG", keep_rgb=True), "colours other than YCbCr and grey"),
        (jpeg()[:-2], "cut off, or with data behind its end"),
        (jpeg()[:30], "damaged"),
        (scene(90, 60), "no JPEG"),
    ],
)
def test_what_is_not_for_the_gpu_is_told_by_its_reason(monkeypatch: pytest.MonkeyPatch, content: Any, why: str) -> None:
    monkeypatch.setattr(gpu_decode, "FROM_PIXELS", 1000)
    assert look_at(content) == why


def test_what_the_gpu_refuses_goes_to_the_processor_and_its_neighbours_do_not(
    decoder: GpuDecoder, machine: Machine
) -> None:
    contents = [jpeg(seed=seed) for seed in range(12)]
    alone = [decoded(decoder, content, str(index)) for index, content in enumerate(contents)]
    machine.refused = {contents[3], contents[8]}
    found: dict[int, Image] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.__setitem__(i, decoded(decoder, contents[i], str(i))))
        for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, image in found.items():
        wanted = decoded(CpuDecoder(SPEC), contents[index], str(index)) if index in (3, 8) else alone[index]
        assert image.path == wanted.path
        np.testing.assert_array_equal(image.pixels, wanted.pixels)
    assert decoder.counts == {"on the GPU": 22, "on the processor: nvImageCodec does not decode it": 2}


def test_a_header_that_nvimagecodec_does_not_understand_spoils_no_other(decoder: GpuDecoder, machine: Machine) -> None:
    odd = jpeg(comment=b"no header")
    assert_alike(decoded(decoder, odd), decoded(CpuDecoder(SPEC), odd))
    assert not any(odd in batch for batch in machine.batches)


def test_a_gpu_that_fails_now_and_then_is_told_once_and_decodes_every_picture(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked again: a picture that the processor decodes instead would be answered otherwise than the others."""
    monkeypatch.setattr(gpu_decode, "_LANES", 1)
    decoder = GpuDecoder(SPEC, CpuDecoder(SPEC))
    content = jpeg()
    for failures in (2, 4, 2, 4):  # each time the list, and the picture that is known
        machine.failures = failures
        assert_alike(decoded(decoder, content), decoded(CpuDecoder(SPEC), content))
    decoder.close()
    said = [record.getMessage() for record in caplog.records]
    assert said == ["decoding on GPU 0: RuntimeError: out of memory; trying again"]
    assert decoder.counts == {"on the GPU": 4}


def test_a_picture_that_no_decoder_bears_costs_no_other_and_no_lane(decoder: GpuDecoder, machine: Machine) -> None:
    contents = [jpeg(seed=seed, comment=POISON if seed % 4 == 0 else b"") for seed in range(24)]
    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda content: decoded(decoder, content), contents))
    for image, content in zip(found, contents, strict=True):
        assert_alike(image, decoded(CpuDecoder(SPEC), content))
    reason = "on the processor: it failed: RuntimeError: a picture that it cannot bear"
    assert decoder.counts == {"on the GPU": 18, reason: 6}
    assert len(lanes(0)) == 2


def test_a_gpu_that_fails_on_and_on_ends_the_run_instead_of_giving_other_pixels(
    decoder: GpuDecoder, machine: Machine
) -> None:
    machine.fails = "out of memory"
    content = jpeg()
    told = r"no GPU decodes any more \(GPU 0: RuntimeError: out of memory\): run it again, .*, or --decode cpu"
    for _ in range(3):
        with pytest.raises(BackendError, match=told):
            decoder.decode("a", lambda: content)
    assert decoder.counts == {}
    png = encode(scene(90, 60), "PNG")
    assert decoded(decoder, png), "what is the processor's anyway"


def test_a_gpu_that_refuses_whatever_it_is_given_has_failed(decoder: GpuDecoder, machine: Machine) -> None:
    """As it does where nvJPEG fails, for want of memory say."""
    machine.refuses_all = True
    with pytest.raises(
        BackendError, match=r"no GPU decodes any more \(GPU 0: RuntimeError: it decodes no JPEG any more"
    ):
        decoder.decode("a", jpeg)
    assert decoder.counts == {}


def test_a_closed_decoder_takes_no_picture(decoder: GpuDecoder) -> None:
    """Whoever gave it one would wait for ever."""
    decoder.close()
    with pytest.raises(BackendError, match="the decoder on the GPU is closed"):
        decoder.decode("a", jpeg)


def test_a_folder_of_jpegs_that_no_gpu_decodes_is_no_failure(decoder: GpuDecoder, machine: Machine) -> None:
    machine.refused = {jpeg()}
    for _ in range(10):
        decoded(decoder, jpeg())
    assert decoder.counts == {"on the processor: nvImageCodec does not decode it": 10}


def test_all_that_wait_for_a_lost_gpu_are_told(decoder: GpuDecoder, machine: Machine) -> None:
    machine.lists_left = 1
    with ThreadPoolExecutor(40) as pool:  # more than there are in a list
        answers = [pool.submit(decoder.decode, str(seed), partial(jpeg, seed=seed)) for seed in range(40)]
    errors = [answer.exception() for answer in answers if answer.exception()]
    assert errors
    assert all(f"no GPU decodes any more (GPU 0: RuntimeError: {LOST})" in str(error) for error in errors)
    assert decoder.counts == {"on the GPU": len(answers) - len(errors)}, "nothing by the processor"


@pytest.mark.parametrize("how", ["nvImageCodec", "the driver"])
def test_the_other_gpus_do_the_work_of_one_that_is_lost(
    machine: Machine, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = GpuDecoder(SPEC, CpuDecoder(SPEC), devices=(0, 1))
    if how == "nvImageCodec":
        machine.broken = {0}
    else:
        copy = machine.cuMemcpyDtoHAsync_v2

        def lost(*given: Any) -> None:
            if machine.stack[-1] == CONTEXTS:
                raise CudaError("cuMemcpyDtoHAsync_v2", 700)
            copy(*given)

        monkeypatch.setattr(machine, "cuMemcpyDtoHAsync_v2", lost)
    pictures = 0
    while lanes(0):
        decoded(decoder, jpeg())
        pictures += 1
    assert len(lanes(1)) == 2
    assert decoder.counts == {"on the GPU": pictures}, "none by the processor"
    assert len(caplog.records) == 2, "one for each lane"
    assert all("it ends here, and the decoders that are left go on" in one.getMessage() for one in caplog.records)
    decoder.close()


def lanes(gpu: int) -> list[str]:
    """Those that run."""
    return [thread.name for thread in threading.enumerate() if thread.name == f"gpu-decode-{gpu}"]


def test_what_fails_while_it_is_closed_is_told_and_leaves_nothing_else_behind(
    decoder: GpuDecoder, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.errors["cuModuleUnload"] = 700
    decoder.close()
    said = {record.getMessage() for record in caplog.records}
    assert said == {
        "closing the decoder on GPU 0: DriverError: the NVIDIA driver answers cuModuleUnload with CUDA error 700 "
        "(an illegal memory access)"
    }
    assert machine.modules, "which is all: see the fixture"
    machine.modules.clear()


def test_a_gpu_without_enough_memory_keeps_nothing_of_it(machine: Machine) -> None:
    machine.errors["cuMemGetInfo_v2"] = 2
    with pytest.raises(BackendError, match=r"does not start on NVIDIA L4 \(.* CUDA error 2 \(out of memory\)\)"):
        GpuDecoder(SPEC, CpuDecoder(SPEC))
    del machine.errors["cuMemGetInfo_v2"]
    machine.errors["cuMemHostAlloc"] = 2
    with pytest.raises(BackendError, match="cuMemHostAlloc with CUDA error 2"):
        GpuDecoder(SPEC, CpuDecoder(SPEC))


@pytest.mark.parametrize(
    ("processors", "of_the_machine", "threads"), [(64, 64, 16), (16, 64, 4), (2, 2, 1), (1, 2, 1), (1, 1, 0)]
)
def test_nvimagecodec_is_given_no_decoder_of_the_processor_and_every_gpu_two_lanes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, processors: int, of_the_machine: int, threads: int
) -> None:
    """And all of them together as many threads as there are processors for this process; 0 is its own choice."""
    monkeypatch.setattr(gpu_decode, "cpu_count", lambda: processors)
    monkeypatch.setattr(os, "cpu_count", lambda: of_the_machine)
    GpuDecoder(SPEC, CpuDecoder(SPEC), devices=(0, 1)).close()
    kinds = ["HW_GPU_ONLY", "GPU_ONLY", "HYBRID_CPU_GPU"]
    wanted = {"backends": kinds, "options": ":fancy_upsampling=0", "max_num_cpu_threads": threads}
    assert machine.decoders == [{"device_id": index, **wanted} for index in (0, 0, 1, 1)]


def test_the_first_list_of_each_decoder_is_as_long_as_any(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_decode, "_LANES", 1)
    GpuDecoder(SPEC, CpuDecoder(SPEC)).close()
    assert [len(batch) for batch in machine.batches] == [32, 1, 1, 1]
    assert len(set(machine.batches[0])) == 1


def test_memory_for_two_lists_of_pictures_stays_with_the_process_while_it_decodes(machine: Machine) -> None:
    decoder = GpuDecoder(SPEC, CpuDecoder(SPEC), devices=(0, 1))
    two_lists = 2 * 32 * 12_000_000 * 3
    assert machine.kept == {0: two_lists, 1: two_lists}
    decoder.close()
    assert machine.kept == {0: 0, 1: 0}


SIZE = 90 * 60


@pytest.mark.parametrize(("free", "most"), [(0, 1), (16 * 3 * (3 * SIZE + 10), 3)])
def test_memory_is_bounded_by_pixels_however_many_wait(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, free: int, most: int
) -> None:
    """By what is free on the GPU, and one picture is always taken."""
    machine.free = free
    monkeypatch.setattr(gpu_decode, "_UP_TO_PIXELS", SIZE)
    decoder = GpuDecoder(SPEC, CpuDecoder(SPEC))
    machine.batches.clear()
    machine.most_pixels_alive = 0
    contents = [jpeg(seed=seed) for seed in range(40)]
    with_lane = threading.Event()
    slow = machine.resample

    def resample(*given: Any) -> Any:
        with_lane.wait(0.01)  # lets the others queue up
        return slow(*given)

    machine.kernels["resample"] = resample
    threads = [threading.Thread(target=decoded, args=(decoder, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    decoder.close()
    assert sum(map(len, machine.batches)) == 40
    assert max(map(len, machine.batches)) == most
    assert machine.most_pixels_alive <= 2 * most * SIZE


def test_weights_are_copied_once_for_pictures_of_one_size(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_decode, "_LANES", 1)
    decoder = GpuDecoder(SPEC, CpuDecoder(SPEC))
    machine.log.clear()
    for seed in range(5):
        decoded(decoder, jpeg(seed=seed))
    assert sum(entry.startswith("to GPU") for entry in machine.log) == 2, "one for each axis"
    decoder.close()


@pytest.mark.parametrize("remembered", [1, 3])
def test_weights_of_more_sizes_than_there_is_room_for_replace_each_other(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, remembered: int
) -> None:
    monkeypatch.setattr(gpu_resize, "_REMEMBERED", remembered)
    decoder = GpuDecoder(SPEC, CpuDecoder(SPEC))
    machine.batches.clear()
    contents = [jpeg(60 + 7 * seed, 50 + 11 * (seed % 3), seed) for seed in range(8)] * 3
    with ThreadPoolExecutor(len(contents)) as pool:
        for content, image in zip(contents, pool.map(partial(decoded, decoder), contents), strict=True):
            assert_alike(image, decoded(CpuDecoder(SPEC, exact=True), content))
    assert max(map(len, machine.batches)) > 1, "several in one list"
    decoder.close()


def test_lanes_end_with_the_decoder(machine: Machine) -> None:
    GpuDecoder(SPEC, CpuDecoder(SPEC)).close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gpu-decode")]


@pytest.mark.parametrize(
    ("form", "is_upside_down"),
    [
        ("baseline", lambda picture: True),
        ("progressive", lambda picture: "progressive" in picture.info),
        ("grey", lambda picture: picture.mode == "L"),
    ],
)
def test_pixels_that_are_wrong_are_refused(machine: Machine, form: str, is_upside_down: Any) -> None:
    machine.is_upside_down = is_upside_down
    told = rf"gives wrong pixels on NVIDIA L4 \(a {form} JPEG is off by .*\): use --decode cpu"
    with pytest.raises(BackendError, match=told):
        GpuDecoder(SPEC, CpuDecoder(SPEC))


def test_a_decoder_that_knows_baseline_jpegs_alone_will_do(machine: Machine) -> None:
    known = gpu_decode._known_jpegs(gpu_decode._KNOWN_SIZE)
    machine.refused = {known["progressive"], known["grey"]}
    decoder = GpuDecoder(SPEC, CpuDecoder(SPEC))
    decoded(decoder, jpeg())
    assert decoder.counts == {"on the GPU": 1}
    decoder.close()


def test_a_lane_is_tried_on_pictures_that_it_would_be_given() -> None:
    for content in gpu_decode._known_jpegs(gpu_decode._KNOWN_SIZE).values():
        assert not isinstance(look_at(content), str)


def test_an_nvimagecodec_that_does_not_start_is_one_line(machine: Machine) -> None:
    machine.fails = "Internal error - Could not create decoder. Code: 8"
    with pytest.raises(BackendError, match=r"does not start on NVIDIA L4 \(.*Code: 8\): pip install"):
        GpuDecoder(SPEC, CpuDecoder(SPEC))


def test_a_missing_nvjpeg_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.refused = {gpu_decode._known_jpegs(gpu_decode._KNOWN_SIZE)["baseline"]}
    with pytest.raises(BackendError, match=r'nvJPEG is missing: pip install "nvidia-nvimgcodec-cu13\[nvjpeg\]"'):
        GpuDecoder(SPEC, CpuDecoder(SPEC))
    monkeypatch.setattr(gpu_decode, "cuda_version", lambda: "12.8")
    with pytest.raises(BackendError, match="nvimgcodec-cu12"):
        GpuDecoder(SPEC, CpuDecoder(SPEC))


def test_a_missing_nvimagecodec_or_gpu_is_named_and_nothing_is_decoded_otherwise(
    machine: Machine, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendError, match="there is no GPU 2, only 0, 1"):
        GpuDecoder(SPEC, CpuDecoder(SPEC), devices=(0, 2))
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    with pytest.raises(BackendError, match=r"needs nvImageCodec, .*: pip install \"nvidia-nvimgcodec-cu13\[nvjpeg\]\""):
        Predictor(model_path, backend="onnx-cpu", decode="gpu")
    with pytest.raises(BackendError, match="no decoder is called 'fpga'; there are: cpu, gpu, auto"):
        Predictor(model_path, backend="onnx-cpu", decode="fpga")


def test_the_command_says_in_one_line_what_is_missing(
    model_path: Path, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> Any:
        raise DriverError("no NVIDIA driver")

    monkeypatch.setattr(cuda_driver, "gpus", absent)
    arguments = ["predict", album, "-o", tmp_path / "out", "-m", model_path, "--backend", "onnx-cpu", "--decode", "gpu"]
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == 1
    assert (
        "--decode gpu needs an NVIDIA GPU: no NVIDIA driver; install the NVIDIA driver" in done.stderr.splitlines()[-1]
    )
    assert not (tmp_path / "out").exists()


@pytest.fixture
def jpegs(tmp_path: Path) -> Path:
    """Eleven JPEGs, one of them refused by its colours, a PNG, and one that is no picture."""
    folder = tmp_path / "jpegs"
    folder.mkdir()
    for index in range(11):
        (folder / f"{index:02}.jpg").write_bytes(jpeg(80 + index, 60, seed=index))
    (folder / "03.jpg").write_bytes(encode(scene(90, 60, 3).convert("CMYK"), "JPEG"))
    (folder / "04.png").write_bytes(encode(scene(90, 60, 4), "PNG"))
    (folder / "05.jpg").write_bytes(b"not a picture")
    return folder


def test_an_error_of_the_caller_ends_a_run_with_pictures_still_on_their_way(
    machine: Machine, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures that are being read then find the decoder closed, and must not wait for it."""
    (tmp_path / "0.jpg").write_bytes(jpeg())
    for index in range(1, 400):
        (tmp_path / f"{index}.jpg").hardlink_to(tmp_path / "0.jpg")
    look = gpu_decode.look_at
    monkeypatch.setattr(gpu_decode, "look_at", lambda content: (time.sleep(0.02), look(content))[1])

    def run() -> None:
        with Predictor(model_path, decode="gpu") as predictor:
            results = predictor.predict([tmp_path])
            for _ in results:
                raise ValueError("the caller's")

    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="the caller's"):
        pool.submit(run).result(60)


def test_a_run_keeps_its_order_and_tells_what_was_decoded_where(
    machine: Machine, model_path: Path, jpegs: Path, tmp_path: Path
) -> None:
    with Predictor(model_path, backend="onnx-cpu") as alone:
        reference = list(alone.predict([jpegs]))
    with Predictor(model_path, backend="onnx-cpu", decode="gpu", batch_size=4) as predictor:
        results = list(predictor.predict([jpegs]))
        runs.run(predictor, [jpegs], tmp_path / "out")
    assert [result.path for result in results] == [result.path for result in reference]
    for one, other in zip(results, reference, strict=True):
        if isinstance(one, Failure) or isinstance(other, Failure):
            assert one == other
        else:
            np.testing.assert_allclose(one.probabilities, other.probabilities, atol=0.02)
    told = json.loads((tmp_path / "out" / "run.json").read_text())["decoder"]
    assert (told["name"], told["chosen"]) == ("gpu", "")
    assert told["version"].startswith("nvImageCodec 0.9.0 for JPEGs from 0.001 megapixel on, else Pillow ")
    assert told["pictures"] == {
        "on the GPU": 9,
        "on the processor: colours other than YCbCr and grey": 1,
        "on the processor: no JPEG": 2,
    }, "of this run alone"


def test_a_run_that_loses_its_gpu_keeps_what_is_done(
    machine: Machine, model_path: Path, jpegs: Path, tmp_path: Path
) -> None:
    def run(folder: str, lists_left: int | None = None) -> runs.Report:
        options: dict[str, Any] = {"decode": "gpu", "decode_threads": 1, "batch_size": 1}
        with Predictor(model_path, backend="onnx-cpu", **options) as predictor:
            machine.lists_left = lists_left
            return runs.run(predictor, [jpegs], tmp_path / folder)

    run("whole")
    with pytest.raises(BackendError, match="no GPU decodes any more"):
        run("lost", lists_left=4)
    machine.lists_left = None
    assert run("lost").reused >= 4
    whole, lost = ((tmp_path / folder / "predictions.csv").read_bytes() for folder in ("whole", "lost"))
    assert whole == lost


def test_a_run_is_made_with_one_decoder(machine: Machine, model_path: Path, jpegs: Path, tmp_path: Path) -> None:
    with Predictor(model_path, backend="onnx-cpu") as cpu:
        runs.run(cpu, [jpegs], tmp_path / "out")
    with (
        Predictor(model_path, backend="onnx-cpu", decode="gpu") as gpu,
        pytest.raises(DataError, match=r"decoder was Pillow .*, is nvImageCodec 0\.9\.0 "),
    ):
        runs.run(gpu, [jpegs], tmp_path / "out")


@pytest.mark.parametrize("faster", ["cpu", "gpu"])
def test_auto_measures_once_and_a_run_that_goes_on_keeps_its_choice(
    machine: Machine,
    model_path: Path,
    jpegs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    faster: str,
) -> None:
    rates = {"cpu": 30.0, "gpu": 20.0}
    rates[faster] = 90.0
    monkeypatch.setattr(decoders, "_rate", lambda decoder, contents, threads: rates[decoder.name])

    def run(folder: str, stop_after: int | None = None) -> str:
        seen: list[Any] = []
        with Predictor(model_path, backend="onnx-cpu", decode="auto", batch_size=1) as predictor:
            runs.run(
                predictor,
                [jpegs],
                tmp_path / folder,
                seen=seen.append,
                stop=lambda: stop_after is not None and len(seen) >= stop_after,
            )
            return predictor.decoder_choice

    with caplog.at_level(logging.WARNING):
        assert f"{rates['cpu']:.0f} big JPEGs a second on the processor, {rates['gpu']:.0f} with the GPU" in run(
            "whole"
        )
    assert len(caplog.records) == 1
    run("resumed", stop_after=2)
    rates["cpu"], rates["gpu"] = rates["gpu"], rates["cpu"]  # another day
    assert run("resumed").endswith(", as before")
    whole, resumed = ((tmp_path / folder / "predictions.csv").read_bytes() for folder in ("whole", "resumed"))
    assert whole == resumed
    told = json.loads((tmp_path / "resumed" / "run.json").read_text())["decoder"]
    assert told["name"] == faster


def test_auto_takes_the_processor_where_there_is_nothing_to_choose(
    machine: Machine, model_path: Path, album: Path, jpegs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choice(folder: Path) -> str:
        with Predictor(model_path, backend="onnx-cpu", decode="auto") as predictor:
            assert len([*predictor.predict([folder])]) == len([*folder.iterdir()])
            assert predictor.decoder.name == "cpu"
            return predictor.decoder_choice

    assert choice(album).endswith("fewer than 4 big JPEGs among the first 64 pictures")
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    assert "needs nvImageCodec" in choice(jpegs)


class Engine:
    """An engine on a GPU that takes some time for a batch."""

    device = "GPU 0 (NVIDIA L4), TF32 allowed"
    workers = 2

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.sizes: list[int] = []

    def buffer(self, pictures: int) -> NDArray[np.uint8]:
        return np.zeros((pictures, 24, 32, 3), np.uint8)

    def infer(self, pixels: NDArray[np.uint8]) -> None:
        self.sizes.append(len(pixels))
        time.sleep(self.seconds)


def choose(jpegs: Path, engine: Any, batch_size: int) -> tuple[str, str]:
    """Which decoder, and why."""
    chosen, why = decoders.choose(find_sources([jpegs]), decoders.Options(SPEC), None, engine, batch_size)
    chosen.close()
    return chosen.name, why


def test_auto_takes_the_processor_where_the_engine_takes_no_more(machine: Machine, jpegs: Path) -> None:
    slow = Engine(seconds=0.1)
    name, why = choose(jpegs, slow, batch_size=1)
    assert name == "cpu"
    assert "big JPEGs a second on the processor, and the engine takes" in why
    assert len(slow.sizes) > slow.workers, "once before, to be warm"


def test_auto_measures_both_ways_where_the_engine_waits(machine: Machine, jpegs: Path) -> None:
    fast = Engine()
    _, why = choose(jpegs, fast, batch_size=10_000)
    assert set(fast.sizes) == {10_000}, "whole batches"
    assert " with the GPU" in why


def test_auto_measures_both_ways_where_the_engine_shares_the_processor(machine: Machine, jpegs: Path) -> None:
    """There even a processor that decodes fast enough has better things to do."""
    engine = Engine()
    engine.device = "CPU, float32"
    _, why = choose(jpegs, engine, batch_size=1)
    assert engine.sizes == []
    assert " with the GPU" in why


def test_auto_takes_the_processor_where_the_gpu_is_lost_meanwhile(machine: Machine, jpegs: Path) -> None:
    machine.lists_left = 2 * 4  # what both lanes are tried on
    name, why = choose(jpegs, Engine(), batch_size=10_000)
    assert name == "cpu"
    assert why.endswith("or --decode cpu")


def test_auto_really_decodes_what_it_measures(machine: Machine, jpegs: Path) -> None:
    contents = [path.read_bytes() for path in sorted(jpegs.glob("0[0-2].jpg"))]
    decoder = GpuDecoder(SPEC, CpuDecoder(SPEC))
    machine.batches.clear()
    assert decoders._rate(decoder, contents, threads=2) > 0
    assert sorted({content for batch in machine.batches for content in batch}) == sorted(contents)
    decoder.close()


SIZES = [(90, 60), (61, 60), (300, 7), (40, 30), (32, 24), (500, 333)]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`resample.cu` as C++ for the processor, one thread after the other."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("the kernel's source is compiled by a C++ compiler, and there is none")
    folder = tmp_path_factory.mktemp("kernel")
    source = resources.files("mineral_batch.images.gpu").joinpath("resample.cu").read_text()
    (folder / "kernel.cpp").write_text(
        "#define __global__\nstatic struct { unsigned x; } blockIdx, blockDim, threadIdx;\n"
        + source
        + 'extern "C" void run(const unsigned char *in, unsigned char *out, const int *table, int taps, int size_in,\n'
        "                    int size_out, int inner, long long count)\n{\n    blockDim.x = 64;\n"
        "    for (blockIdx.x = 0; blockIdx.x * 64LL < count + 64; ++blockIdx.x)\n"
        "        for (threadIdx.x = 0; threadIdx.x < 64; ++threadIdx.x)\n"
        "            resample(in, out, table, taps, size_in, size_out, inner, count);\n}\n" + DRIVER
    )
    library = folder / "kernel.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, folder / "kernel.cpp"], check=True)
    return ctypes.CDLL(str(library))


#: A driver in C, with the types of cuda.h: what goes wrong between Python and C does so here as on a GPU. Memory is the
#: processor's, above 4 GiB like all of it, and a kernel runs at once.
DRIVER = r"""
#include <cstdlib>
#include <cstring>
typedef unsigned long long Pointer;
typedef struct Opaque *Handle;
static int depth;
extern "C" {
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) { *value = which == 115; return device == 1 ? 0 : 1; }
int cuDeviceGetDefaultMemPool(Handle *pool, int device)
{
    *pool = (Handle)0x7f4000000000;
    return device == 1 ? 0 : 1;
}
int cuMemPoolSetAttribute(Handle pool, int which, void *value)
{
    return pool == (Handle)0x7f4000000000 && which == 4 && *(unsigned long long *)value == 5ull << 32 ? 0 : 1;
}
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = (size_t)5 << 32; *total = (size_t)6 << 32; return 0; }
int cuDevicePrimaryCtxRetain(Handle *context, int device) { *context = (Handle)(0x7f0000000000 + device); return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return device == 1 ? 0 : 1; }
int cuCtxPushCurrent_v2(Handle context) { ++depth; return context == (Handle)0x7f0000000001 ? 0 : 201; }
int cuCtxPopCurrent_v2(Handle *context) { --depth; *context = 0; return 0; }
int cuCtxSynchronize() { return depth == 1 ? 0 : 201; }
int cuMemHostAlloc(void **memory, size_t size, unsigned flags) { *memory = malloc(size); return flags == 1 ? 0 : 1; }
int cuMemFreeHost(void *memory) { free(memory); return 0; }
int cuStreamCreate(Handle *stream, unsigned flags) { *stream = (Handle)0x7f1000000000; return flags == 1 ? 0 : 1; }
int cuStreamSynchronize(Handle stream) { return stream == (Handle)0x7f1000000000 ? 0 : 400; }
int cuStreamDestroy_v2(Handle stream) { return stream == (Handle)0x7f1000000000 ? 0 : 400; }
int cuMemAlloc_v2(Pointer *memory, size_t size) { *memory = (Pointer)malloc(size); return 0; }
int cuMemFree_v2(Pointer memory) { free((void *)memory); return 0; }
int cuMemsetD8_v2(Pointer memory, unsigned char value, size_t size) { memset((void *)memory, value, size); return 0; }
int cuMemcpyHtoDAsync_v2(Pointer to, const void *from, size_t size, Handle stream)
{
    memcpy((void *)to, from, size);
    return cuStreamSynchronize(stream);
}
int cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t size, Handle stream)
{
    memcpy(to, (const void *)from, size);
    return cuStreamSynchronize(stream);
}
int cuModuleLoadData(Handle *module, const void *image)
{
    *module = (Handle)0x7f2000000000;
    return strstr((const char *)image, ".visible .entry resample(") ? 0 : 218;
}
int cuModuleGetFunction(Handle *function, Handle module, const char *name)
{
    *function = (Handle)0x7f3000000000;
    return module == (Handle)0x7f2000000000 && !strcmp(name, "resample") ? 0 : 500;
}
int cuModuleUnload(Handle module) { return module == (Handle)0x7f2000000000 ? 0 : 400; }
int cuLaunchKernel(Handle function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, Handle stream, void **given, void **extra)
{
    if (function != (Handle)0x7f3000000000 || y * z * block_y * block_z != 1 || block_x > 1024 || shared || extra)
        return 1;
    blockDim.x = block_x;
    for (blockIdx.x = 0; blockIdx.x < x; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < block_x; ++threadIdx.x)
            resample(*(unsigned char **)given[0], *(unsigned char **)given[1], *(int **)given[2], *(int *)given[3],
                     *(int *)given[4], *(int *)given[5], *(int *)given[6], *(long long *)given[7]);
    return cuStreamSynchronize(stream);
}
}
"""


def test_the_driver_is_called_with_the_right_types(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a lane but nvImageCodec, from the context to the result, on `DRIVER`."""
    monkeypatch.setattr(cuda_driver, "_driver", lambda: kernel)
    picture = scene(200, 90, 5)
    pixels = np.asarray(picture)
    context = cuda_driver.Context(GPUS[1])
    with context.current():
        assert context.free_memory() == 5 << 32
        context.keep_freed(5 << 32)
        stream = context.stream()
        given, result = context.allocate(pixels.nbytes), context.allocate(24 * 32 * 3)
        resizer = Resizer(context, stream, 32)
        context.to_gpu(given, pixels, stream)
        resizer.enqueue(int(given), picture.size, (0.0, 0.0, 200.0, 90.0), (32, 24), "bicubic", int(result))
        answer = np.empty((24, 32, 3), np.uint8)
        context.from_gpu(answer, result, stream)
        stream.synchronize()
        resizer.close()
        for memory in (given, result):
            memory.free()
        stream.close()
    context.release()
    locked = cuda_driver.page_locked((2, 3), 1)
    assert not locked.any()
    np.testing.assert_array_equal(answer, np.asarray(picture.resize((32, 24), PILImage.Resampling.BICUBIC)))


def on_kernel(kernel: Any, pixels: NDArray[np.uint8], weights: NDArray[np.int32], inner: int) -> NDArray[np.uint8]:
    size_out, columns = weights.shape
    size_in = pixels.shape[1]
    out = np.full((pixels.shape[0], size_out, inner), 77, np.uint8)
    given, result, rows = (array.ctypes.data_as(ctypes.c_void_p) for array in (pixels, out, weights))
    kernel.run(given, result, rows, columns - 2, size_in, size_out, inner, ctypes.c_longlong(out.size))
    return out


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("is_cropped", [False, True])
def test_the_kernels_source_resizes_as_pillow_does(
    kernel: Any, size: tuple[int, int], interpolation: str, is_cropped: bool
) -> None:
    width, height = size
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3)).astype(np.uint8)
    box = (width * 0.11, height * 0.07, width * 0.93, height * 0.88) if is_cropped else (0.0, 0.0, width, height)
    across = table(width, (box[0], box[2]), SPEC.width, interpolation)
    down = table(height, (box[1], box[3]), SPEC.height, interpolation)
    narrow = on_kernel(kernel, pixels, across, 3)
    found = on_kernel(kernel, narrow.reshape(1, height, SPEC.width * 3), down, SPEC.width * 3)
    filters = {"bilinear": PILImage.Resampling.BILINEAR, "bicubic": PILImage.Resampling.BICUBIC}
    # One axis at a time: Pillow 13 chooses the order, the kernel does not.
    half = PILImage.fromarray(pixels).resize((SPEC.width, height), filters[interpolation], (box[0], 0, box[2], height))
    part = (0, box[1], SPEC.width, box[3])
    expected = half.resize((SPEC.width, SPEC.height), filters[interpolation], part)
    np.testing.assert_array_equal(found.reshape(SPEC.height, SPEC.width, 3), np.asarray(expected))


def test_the_compiled_kernel_is_of_this_source() -> None:
    folder = resources.files("mineral_batch.images.gpu")
    digest = hashlib.sha256(folder.joinpath("resample.cu").read_bytes()).hexdigest()
    code = folder.joinpath("resample.ptx").read_text()
    assert f"sha256 {digest}" in code, "compile it anew, as its first lines say"
    assert ".visible .entry resample(" in code


def test_doctor_tries_it_and_says_how_it_went(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    doctor.decoding_trial()
    told = json.loads(capsys.readouterr().out)
    assert told["works"]
    assert told["version"].startswith("nvImageCodec 0.9.0 ")
    machine.fails = "Internal error"
    doctor.decoding_trial()
    assert "does not start on NVIDIA L4" in json.loads(capsys.readouterr().out)["reason"]


def test_doctor_tries_it_in_a_process_of_its_own() -> None:
    report = doctor.examine(None)
    assert report.gpu_decoding.works or "--decode gpu" in report.gpu_decoding.reason
    assert report.gpu_decoding.works <= bool(report.machine.gpus)


@pytest.fixture
def real_decoder() -> Iterator[GpuDecoder]:
    """On the GPU of this machine; what is missing is the reason for leaving its tests out."""
    try:
        opened = GpuDecoder(SPEC, CpuDecoder(SPEC, exact=True))
    except BackendError as error:
        pytest.skip(str(error))
    yield opened
    opened.close()


@pytest.mark.gpu
def test_a_real_gpu_gives_pillows_pixels_whatever_the_jpeg(real_decoder: GpuDecoder) -> None:
    forms: list[dict[str, Any]] = [{}, {"progressive": True}, {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"}]
    contents = [jpeg(1200, 900, seed, **form) for seed, form in enumerate(forms)]
    contents += [with_orientation(value, width=1400, height=900) for value in range(1, 9)]
    contents.append(encode(scene(1200, 900).convert("L"), "JPEG"))
    cpu = CpuDecoder(SPEC, exact=True)
    with ThreadPoolExecutor(len(contents)) as pool:
        for _ in range(3):
            for content, image in zip(contents, pool.map(partial(decoded, real_decoder), contents), strict=True):
                expected = decoded(cpu, content)
                assert (image.width, image.height) == (expected.width, expected.height)
                assert np.abs(image.pixels.astype(int) - expected.pixels).mean() < 1
    assert real_decoder.counts == {"on the GPU": 3 * len(contents)}


@pytest.mark.gpu
def test_a_real_gpu_decodes_a_picture_alike_among_any_others(real_decoder: GpuDecoder) -> None:
    """So that a run which was stopped ends with the same bytes."""
    contents = [jpeg(1200 + 40 * seed, 900, seed, progressive=bool(seed % 3)) for seed in range(24)]
    alone = [decoded(real_decoder, content).pixels for content in contents]
    with ThreadPoolExecutor(len(contents)) as pool:
        for image, expected in zip(pool.map(partial(decoded, real_decoder), contents), alone, strict=True):
            np.testing.assert_array_equal(image.pixels, expected)
