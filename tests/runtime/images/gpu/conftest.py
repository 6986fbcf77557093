"""A machine with GPUs, and a decoder on it."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image as PILImage

from mineral_batch import Image, InputSpec
from mineral_batch.cuda import probe
from mineral_batch.images.decoder import CpuDecoder
from mineral_batch.images.gpu import decoder as decoder_module
from mineral_batch.images.gpu import jpeg as jpeg_module
from mineral_batch.images.gpu import selftest
from mineral_batch.images.gpu import worker as worker_module
from mineral_batch.images.gpu.decoder import GpuDecoder

from ....fakes.nvimgcodec import GPUS, Machine, NvImageCodec
from ...conftest import encode, scene

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


SPEC = InputSpec(height=24, width=32, interpolation="bicubic")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine()
    machine.install(monkeypatch)
    assert probe.gpus() == GPUS
    for module in (jpeg_module, decoder_module):
        monkeypatch.setattr(module, "MIN_PIXELS", 1000)  # so that the tests' pictures are big
    monkeypatch.setattr(selftest, "_SIZE", (120, 90))
    monkeypatch.setattr(worker_module, "_PAUSE", 0)
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
def workers(gpu: int) -> list[str]:
    """Those that run."""
    return [thread.name for thread in threading.enumerate() if thread.name == f"gpu-decode-{gpu}"]


@pytest.fixture
def jpegs(tmp_path: Path) -> Path:
    """Eleven JPEGs, one of them refused by its colors, a PNG, and one that is no picture."""
    folder = tmp_path / "jpegs"
    folder.mkdir()
    for index in range(11):
        (folder / f"{index:02}.jpg").write_bytes(jpeg(80 + index, 60, seed=index))
    (folder / "03.jpg").write_bytes(encode(scene(90, 60, 3).convert("CMYK"), "JPEG"))
    (folder / "04.png").write_bytes(encode(scene(90, 60, 4), "PNG"))
    (folder / "05.jpg").write_bytes(b"not a picture")
    return folder
