"""Formats that need an optional package: camera raw and JPEG XL."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from mineral_batch import Failure, Image, InputSpec
from mineral_batch.images.decode import decode_image, open_rgb
from mineral_batch.images.raw import is_raw

from ..conftest import encode, scene
from .tiffs import page, tiff

SPEC = InputSpec(height=24, width=32)


def dng(width: int = 64, height: int = 48, **tags: Any) -> bytes:
    """A DNG: a thumbnail, and a sensor's data (a Bayer pattern) that are red at the left, blue at the right."""
    mosaic = np.full((height, width), 3000, np.uint16)
    mosaic[0::2, 0::2] = np.where(np.arange(0, width, 2) < width // 2, 60000, 1000)  # red
    mosaic[1::2, 1::2] = np.where(np.arange(0, width, 2) < width // 2, 1000, 60000)  # blue
    sensor = page(mosaic, bits=16, photometric=32803, t254=0, t33421=[2, 2], t33422=b"\0\1\1\2", t50714=0, t50717=65535)
    thumbnail = page(
        np.asarray(scene(16, 12)), bits=8, photometric=2, t254=1, t50706=b"\1\4\0\0", t271="Test", t272="Test"
    )
    thumbnail |= {50778: 21}
    return tiff(thumbnail | tags, subifds=(sensor,))


def test_camera_raw_is_known_by_its_sensor_data_or_signature() -> None:
    assert is_raw(dng())
    assert is_raw(b"II*\0\x10\0\0\0CR\x02\0")
    assert is_raw(b"FUJIFILMCCD-RAW 0201")
    assert is_raw(b"\0\0\0\x18ftypcrx \0\0\0\1")
    assert not is_raw(tiff(page(np.asarray(scene()), bits=8, photometric=2)))
    assert not is_raw(encode(scene(), "JPEG"))


def test_without_rawpy_camera_raw_says_what_to_install_and_is_no_bad_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rawpy", None)
    found = decode_image("a.dng", dng, SPEC)
    assert isinstance(found, Failure)
    assert (found.stage, "[raw]'" in found.reason) == ("read", True)


def test_camera_raw_is_decoded_and_not_its_thumbnail() -> None:
    pytest.importorskip("rawpy")
    image = np.asarray(open_rgb(dng()), int)
    assert image.shape[0] >= 24
    left, right = image[:, : image.shape[1] // 3], image[:, -image.shape[1] // 3 :]
    assert left[..., 0].mean() > left[..., 2].mean() + 50
    assert right[..., 2].mean() > right[..., 0].mean() + 50


def test_a_damaged_camera_raw_is_a_failure_of_one_line() -> None:
    pytest.importorskip("rawpy")
    found = decode_image("a.cr2", lambda: b"II*\0\x10\0\0\0CR\x02\0" + bytes(500), SPEC)
    assert isinstance(found, Failure)
    assert found.stage == "decode"
    assert found.reason.startswith("camera raw: ")
    assert len(found.reason.splitlines()) == 1


def test_jpeg_xl_is_decoded_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pillow_jxl")
    content = encode(scene(), "JXL", lossless=True)
    np.testing.assert_array_equal(np.asarray(open_rgb(content)), np.asarray(scene()))
    assert isinstance(decode_image("a.jxl", lambda: content, SPEC), Image)


def test_without_its_package_a_jpeg_xl_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    monkeypatch.delitem(PILImage.OPEN, "JXL", raising=False)
    for content in (b"\xff\x0a" + bytes(50), b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50)):
        found = decode_image("a.jxl", lambda content=content: content, SPEC)
        assert isinstance(found, Failure)
        assert (found.stage, "[jxl]'" in found.reason) == ("read", True)


def test_the_packages_are_imported_only_when_needed() -> None:
    importlib.import_module("mineral_batch.images.formats")
    assert {"rawpy", "pillow_jxl"} & set(vars(importlib.import_module("mineral_batch.images.formats"))) == set()
