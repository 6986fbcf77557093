"""Which images a GPU decodes, and that it decodes them as the CPU does."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image as PILImage

from mineral_batch import BackendError, Failure, Image, InputSpec
from mineral_batch.images.decoder import CpuDecoder
from mineral_batch.images.gpu import jpeg as jpeg_module
from mineral_batch.images.gpu.batch import import_nvimagecodec
from mineral_batch.images.gpu.decoder import GpuDecoder
from mineral_batch.images.gpu.jpeg import inspect_jpeg
from mineral_batch.images.gpu.resize import MAX_SIDE

from ...conftest import encode, scene
from .conftest import SPEC, assert_alike, decoded, jpeg, with_orientation

if TYPE_CHECKING:
    from pathlib import Path

    from ....fakes.nvimgcodec import Machine
    from ...conftest import Encoded


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
    on_gpu = {"baseline.jpg", "progressive.jpeg", "a JPEG called.png", "CAPITALS.JPG", "gray.jpg"}
    assert decoder.counts["on the GPU"] == len(on_gpu) + ("multi.mpo" in photos)
    assert decoder.counts["on the CPU: colors other than YCbCr and gray"] == 1, "cmyk.jpg"


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
        (encode(scene(90, 60), "PNG"), "not a JPEG"),
        (jpeg(MAX_SIDE + 1, 1), "too large"),
        (encode(scene(90, 60).convert("CMYK"), "JPEG"), "colors other than YCbCr and gray"),
        (encode(scene(90, 60), "JPEG", keep_rgb=True), "colors other than YCbCr and gray"),
        (jpeg()[:-2], "truncated, or with data behind its end"),
        (jpeg()[:30], "damaged"),
        (scene(90, 60), "not a JPEG"),
    ],
)
def test_what_is_not_for_the_gpu_is_told_by_its_reason(monkeypatch: pytest.MonkeyPatch, content: Any, why: str) -> None:
    monkeypatch.setattr(jpeg_module, "MIN_PIXELS", 1000)
    assert inspect_jpeg(content) == why


def test_what_the_gpu_refuses_goes_to_the_processor_and_its_neighbors_do_not(
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
    assert decoder.counts == {"on the GPU": 22, "on the CPU: nvImageCodec does not decode it": 2}


def test_a_header_that_nvimagecodec_does_not_understand_spoils_no_other(decoder: GpuDecoder, machine: Machine) -> None:
    odd = jpeg(comment=b"no header")
    assert_alike(decoded(decoder, odd), decoded(CpuDecoder(SPEC), odd))
    assert not any(odd in batch for batch in machine.batches)


def test_a_closed_decoder_takes_no_picture(decoder: GpuDecoder) -> None:
    """Whoever gave it one would wait for ever."""
    decoder.close()
    with pytest.raises(BackendError, match="the GPU decoder is closed"):
        decoder.decode("a", jpeg)


def test_a_folder_of_jpegs_that_no_gpu_decodes_is_no_failure(decoder: GpuDecoder, machine: Machine) -> None:
    machine.refused = {jpeg()}
    for _ in range(10):
        decoded(decoder, jpeg())
    assert decoder.counts == {"on the CPU: nvImageCodec does not decode it": 10}


def test_what_nvimagecodec_writes_when_it_is_imported_goes_to_the_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its C++ code writes to the file descriptor."""
    package = tmp_path / "nvidia" / "nvimgcodec"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import os\nos.write(2, b'Failed to load nvtiff library!\\n')")
    for name in [name for name in sys.modules if name.split(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with caplog.at_level(logging.DEBUG, logger="mineral_batch"):
        assert import_nvimagecodec().__name__ == "nvidia.nvimgcodec"
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"
    assert [record.getMessage() for record in caplog.records] == ["nvImageCodec: Failed to load nvtiff library!"]
    for name in [name for name in sys.modules if name.split(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
